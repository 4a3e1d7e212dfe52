"""What a run leaves: its tables, read by another engine than the one that wrote them, and its reports."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
from conftest import sorted_rows

import etl


def published(output: Path | str, name: str, by_day: bool = False) -> list[tuple]:
    """The table's rows, sorted, as DuckDB reads them; times as naive UTC. By day, a play has its day as well."""
    names = [*etl.TABLES[name].names(), *["day"] * (by_day and name == "songplays")]
    columns = [f"{column} AT TIME ZONE 'UTC'" if column == "start_time" else column for column in names]
    with duckdb.connect() as engine:
        engine.execute("SET TimeZone = 'UTC'")
        files = f"read_parquet('{output}/{name}/**/*.parquet', hive_partitioning = true)"
        return sorted_rows(engine.sql(f"SELECT {', '.join(columns)} FROM {files}").fetchall())


def all_published(output: Path | str, by_day: bool = False) -> dict[str, list[tuple]]:
    return {name: published(output, name, by_day) for name in etl.TABLES}


def in_order(tables: dict[str, list[tuple]]) -> dict[str, list[tuple]]:
    """Tables of any origin, their rows in the one order that tests compare."""
    return {name: sorted_rows(rows) for name, rows in tables.items()}


def reports(output: Path) -> list[dict]:
    """The reports of all runs, the oldest first."""
    return [json.loads(path.read_text()) for path in sorted((output / "_runs").glob("*.json"))]
