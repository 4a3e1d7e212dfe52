"""The published tables, read by another engine than the one that wrote them."""

from __future__ import annotations

from pathlib import Path

import duckdb
from conftest import sorted_rows

import etl


def published(output: Path | str, name: str) -> list[tuple]:
    """The table's rows, sorted, as DuckDB reads them; times as naive UTC."""
    columns = [
        f"{column} AT TIME ZONE 'UTC'" if column == "start_time" else column for column in etl.TABLES[name].names()
    ]
    with duckdb.connect() as engine:
        engine.execute("SET TimeZone = 'UTC'")
        files = f"read_parquet('{output}/{name}/**/*.parquet', hive_partitioning = true)"
        return sorted_rows(engine.sql(f"SELECT {', '.join(columns)} FROM {files}").fetchall())


def all_published(output: Path | str) -> dict[str, list[tuple]]:
    return {name: published(output, name) for name in etl.TABLES}


def in_order(tables: dict[str, list[tuple]]) -> dict[str, list[tuple]]:
    """Tables of whatever origin, their rows in the one order that tests compare."""
    return {name: sorted_rows(rows) for name, rows in tables.items()}
