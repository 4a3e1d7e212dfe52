"""What a run leaves: its tables, read by another engine than the one that wrote them, and its reports."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
from conftest import sorted_rows

import etl


def published(output: Path | str, name: str, by_day: bool = False) -> list[tuple]:
    """The table's rows, sorted, as DuckDB reads them; times as naive UTC. by_day adds a play's day."""
    types = etl.field_types(etl.TABLES[name].columns)
    names = [*types, *["day"] * (by_day and name == "songplays")]
    columns = [f"{column} AT TIME ZONE 'UTC'" if column == "start_time" else column for column in names]
    file = next(Path(output, name).rglob("*.parquet"), None)
    partitions = {part.split("=")[0] for part in file.relative_to(output).parts if "=" in part} if file else set()
    hive = ", ".join(
        f"{column}: {types.get(column, 'INT')}" for column in partitions
    )  # else an artist_id 007 is a number
    with duckdb.connect() as engine:
        engine.execute("SET TimeZone = 'UTC'")
        files = f"'{output}/{name}/**/*.parquet', hive_partitioning = true" + f", hive_types = {{{hive}}}" * bool(hive)
        return sorted_rows(engine.sql(f"SELECT {', '.join(columns)} FROM read_parquet({files})").fetchall())


def all_published(output: Path | str, by_day: bool = False) -> dict[str, list[tuple]]:
    return {name: published(output, name, by_day) for name in etl.TABLES}


def in_order(tables: dict[str, list[tuple]]) -> dict[str, list[tuple]]:
    """Tables of any origin, their rows in the one order that tests compare."""
    return {name: sorted_rows(rows) for name, rows in tables.items()}


def reports(output: Path) -> list[dict]:
    """The reports of all runs, the oldest first."""
    return [json.loads(path.read_text()) for path in sorted((output / "_runs").glob("*.json"))]
