"""docs/questions.md: its statements run, and all engines give the same answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pytest
import sqlglot
from conftest import ROOT, in_utc
from pyspark.sql import SparkSession
from sqlglot.optimizer.qualify import qualify

import etl

PAGE = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
ENGINES = ("Athena", "DuckDB", "Spark")


class Statement(NamedTuple):
    question: str
    engines: tuple[str, ...]
    text: str


def statements() -> list[Statement]:
    """Each SQL block below a numbered heading; the paragraph above it names its engines."""
    found = []
    for section in re.split(r"^## ", PAGE, flags=re.M)[1:]:
        heading, _, body = section.partition("\n")
        for above, text in re.findall(r"((?:^.+\n)+)\n```sql\n([^`]*)```", body, flags=re.M):
            engines = ENGINES if "All three" in above else tuple(name for name in ENGINES if name in above)
            if heading[0].isdigit():
                found.append(Statement(heading, engines, text))
    return found


def block(language: str) -> str:
    """How the page gets at the tables in an engine."""
    return re.search(rf"## Getting at the tables.*?```{language}\n(.*?)```", PAGE, flags=re.S)[1]


@pytest.fixture(scope="module")
def output(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the job makes of the sample."""
    output = tmp_path_factory.mktemp("lake") / "output"
    etl.run(etl.Settings(input=str(ROOT / "data"), output=str(output)))
    return output


Ask = Callable[[str], list[tuple]]


@pytest.fixture(scope="module")
def in_duckdb(output: Path) -> Iterator[Ask]:
    with duckdb.connect() as engine:
        engine.execute(block("sql").replace("'output/", f"'{output}/"))
        yield lambda text: comparable(engine.sql(text).fetchall())


@pytest.fixture(scope="module")
def in_spark(spark: SparkSession, output: Path) -> Iterator[Ask]:
    exec(block("python").replace('f"output/', f'f"{output}/'), {"spark": spark})
    yield lambda text: comparable(spark.sql(text).collect())
    for name in etl.TABLES:
        spark.catalog.dropTempView(name)


def comparable(rows: list[Any]) -> list[tuple]:
    """Rows in their own order; times as naive UTC."""
    return [tuple(in_utc(value) if isinstance(value, datetime) else value for value in row) for row in rows]


def test_the_page_has_five_questions_and_each_is_answered_for_every_engine() -> None:
    answered = {(each.question[0], name) for each in statements() for name in each.engines}
    assert answered == {(number, name) for number in "12345" for name in ENGINES}


@pytest.mark.parametrize("question", sorted({each.question for each in statements()}))
def test_duckdb_and_spark_give_the_same_rows(question: str, in_duckdb: Ask, in_spark: Ask) -> None:
    asked = [each for each in statements() if each.question == question]
    duckdb_rows = [in_duckdb(each.text) for each in asked if "DuckDB" in each.engines]
    spark_rows = [in_spark(each.text) for each in asked if "Spark" in each.engines]
    assert all(duckdb_rows) and duckdb_rows == spark_rows


@pytest.mark.parametrize("question", sorted({each.question for each in statements()}))
def test_athena_would_read_the_statement_and_translated_it_gives_the_same_rows(
    question: str, in_duckdb: Ask, in_spark: Ask
) -> None:
    asked = [each for each in statements() if each.question == question]
    columns = {name: dict(column.split() for column in table.columns.split(",")) for name, table in etl.TABLES.items()}
    athena = [sqlglot.parse_one(each.text, dialect="athena") for each in asked if "Athena" in each.engines]
    for tree in athena:
        qualify(tree.copy(), schema=columns, dialect="athena")  # an error for a column that is not there
    translated = [in_duckdb(tree.sql(dialect="duckdb")) for tree in athena]
    assert translated == [in_spark(each.text) for each in asked if "Spark" in each.engines]
