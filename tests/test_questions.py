"""docs/questions.md: its statements run, and all engines give the same answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pytest
import sqlglot
from conftest import ROOT, event, in_utc, play_of, song, write_lake
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
    """The page's set-up for an engine."""
    return re.search(rf"## Set-up.*?```{language}\n(.*?)```", PAGE, flags=re.S)[1]


# At the turn of a year: the first and the last ISO week may belong to the other year.
TURNS = ["2018-01-01", "2018-12-30", "2018-12-31", "2019-01-01", "2016-01-03", "2020-12-31", "2021-01-01", "2023-01-01"]
TURNS += ["2024-12-29", "2024-12-30", "2025-01-01"]


def turns_of_the_year(root: Path) -> Path:
    """A lake of plays at turns of the year: of known songs and others, by users who upgrade and others."""
    plays = [
        event(
            at=f"{day}T{hour}:00:00",
            userId=str(hour),
            level=level,
            itemInSession=item,
            artist=artist,
            song=f"Song {item}",
        )
        for day in TURNS
        for hour in (10, 11)
        for item, (level, artist) in enumerate([("free", "The Larks"), ("free", "No\u00ebl"), ("free", "The Larks")])
    ]
    known = [play_of(song(), at=f"{day}T12:00:00", userId="10", level="paid", sessionId=8) for day in TURNS]
    nameless = event(artist=None, song=None, length=None, at="2018-05-05T05:05:05", sessionId=9)
    return write_lake(root, [song()], [*plays, *known, nameless])


@pytest.fixture(scope="module", params=["the sample by month", "turns of the year by day"])
def output(request: pytest.FixtureRequest, spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the job makes of the sample, and of turns of the year in the layout by day."""
    place = tmp_path_factory.mktemp("lake")
    source, by = (ROOT / "data", ("year", "month"))
    if "day" in request.param:
        source, by = turns_of_the_year(place / "input"), ("year", "month", "day")
    etl.run(etl.Settings(input=str(source), output=str(place / "output"), plays_partition_by=by))
    return place / "output"


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


def test_each_question_is_answered_for_every_engine() -> None:
    answered = {(each.question[0], name) for each in statements() for name in each.engines}
    assert answered == {(number, name) for number in "123456" for name in ENGINES}


@pytest.mark.parametrize("question", sorted({each.question for each in statements()}))
def test_duckdb_and_spark_give_the_same_rows(question: str, in_duckdb: Ask, in_spark: Ask) -> None:
    asked = [each for each in statements() if each.question == question]
    duckdb_rows = [in_duckdb(each.text) for each in asked if "DuckDB" in each.engines]
    spark_rows = [in_spark(each.text) for each in asked if "Spark" in each.engines]
    assert all(duckdb_rows) and duckdb_rows == spark_rows


LAYOUTS = [("year", "month"), ("year", "month", "day")]


@pytest.mark.parametrize("by", LAYOUTS, ids=",".join)
@pytest.mark.parametrize(
    "each", [each for each in statements() if "Athena" in each.engines], ids=lambda each: each.question
)
def test_athena_would_find_every_column_of_the_statement(each: Statement, by: tuple[str, ...]) -> None:
    tables = etl.tables_for(etl.Settings(input="", output="", plays_partition_by=by))
    columns = {name: etl.field_types(table.columns) for name, table in tables.items()}
    qualify(sqlglot.parse_one(each.text, dialect="athena"), schema=columns, dialect="athena")


@pytest.mark.parametrize("question", sorted({each.question for each in statements()}))
def test_the_statement_for_athena_gives_the_same_rows_in_translation(
    question: str, in_duckdb: Ask, in_spark: Ask
) -> None:
    asked = [each for each in statements() if each.question == question]
    athena = [sqlglot.parse_one(each.text, dialect="athena") for each in asked if "Athena" in each.engines]
    translated = [in_duckdb(tree.sql(dialect="duckdb")) for tree in athena]
    assert translated == [in_spark(each.text) for each in asked if "Spark" in each.engines]


def about(words: str, engine: str) -> str:
    """The statement for the engine that has these words, without its filter by year."""
    [text] = [each.text for each in statements() if engine in each.engines and words in each.text]
    return text.replace("year = 2018", "year > 0").replace("LIMIT 20", "")


def logged(output: Path) -> list[dict[str, Any]]:
    """The plays, as the files of songplays have them."""
    columns = ["start_time", "song_id", "song_title", "artist_name", "song_length"]
    with duckdb.connect() as engine:
        engine.execute(block("sql").replace("'output/", f"'{output}/"))
        rows = engine.sql(f"SELECT CAST(start_time AS TIMESTAMP), {', '.join(columns[1:])} FROM songplays").fetchall()
    return [dict(zip(columns, row, strict=True)) for row in rows]


def test_plays_per_week_go_by_the_iso_year(output: Path, in_duckdb: Ask, in_spark: Ask) -> None:
    weeks = sorted(Counter(play["start_time"].isocalendar()[:2] for play in logged(output)).items())
    expected = [(*week, plays) for week, plays in weeks]
    assert in_duckdb(about("iso_year", "DuckDB")) == in_spark(about("iso_year", "Spark")) == expected
    assert in_duckdb(sqlglot.transpile(about("iso_year", "Athena"), read="athena", write="duckdb")[0]) == expected


def test_the_most_played_artists_and_songs_are_those_of_all_plays(output: Path, in_duckdb: Ask) -> None:
    plays = [play for play in logged(output) if play["song_title"]]
    artists = Counter(play["artist_name"] for play in plays)
    assert {artist: plays for artist, plays, _ in in_duckdb(about("SELECT artist_name, count", "DuckDB"))} == artists
    songs = Counter((play["artist_name"], play["song_title"]) for play in plays)
    ranked = in_duckdb(about("SELECT artist_name, song_title, count", "DuckDB"))
    assert {(artist, title): plays for artist, title, plays, _ in ranked} == songs
    assert [row[2] for row in ranked] == sorted(songs.values(), reverse=True)


def test_what_the_catalogue_lacks_is_every_named_play_without_a_song_ranked(output: Path, in_duckdb: Ask) -> None:
    facts = ("artist_name", "song_title", "song_length")
    plays = [play for play in logged(output) if play["song_id"] is None and play["song_title"]]
    lacking = Counter(tuple(play[fact] for fact in facts) for play in plays)
    ranked = in_duckdb(about("song_id IS NULL", "DuckDB"))
    assert {row[:3]: row[3] for row in ranked} == lacking
    assert [row[3] for row in ranked] == sorted(lacking.values(), reverse=True)
