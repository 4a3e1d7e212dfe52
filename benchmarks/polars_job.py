#!/usr/bin/env python3
"""The five tables by Polars: what one process on one machine can do, to hold the Spark job against.

    python benchmarks/polars_job.py INPUT OUTPUT

The same rows as etl.py makes of a clean lake, by the same rules, as Parquet in the same Hive layout. It leaves out:

- songplay_id is a hash of the same key, but Polars's: it has no chained XXH64.
- A line that is no JSON or of a wrong type stops it; lines without a page, time or user are not looked for. Nothing is
  counted or named.
- No audit of what was written, no staging and no journal: readers see a half-written table, and a run that is killed
  leaves one.
- Only *.json, no *.json.gz; only local disk. Files are not sized, nor rows ordered in them.
"""

import shutil
import sys
from pathlib import Path

import polars as pl

SONG = {
    "song_id": pl.String, "title": pl.String, "duration": pl.Float64, "year": pl.Int32, "artist_id": pl.String,
    "artist_name": pl.String, "artist_location": pl.String, "artist_latitude": pl.Float64,
    "artist_longitude": pl.Float64,
}  # fmt: skip
LOG = {
    "ts": pl.Int64, "page": pl.String, "userId": pl.String, "sessionId": pl.Int64, "itemInSession": pl.Int64,
    "firstName": pl.String, "lastName": pl.String, "gender": pl.String, "level": pl.String, "location": pl.String,
    "userAgent": pl.String, "artist": pl.String, "song": pl.String, "length": pl.Float64,
}  # fmt: skip
START = pl.from_epoch("ts", time_unit="ms").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def clean_songs(source: str) -> pl.LazyFrame:
    """One row per song: of several versions the greatest, the year first."""
    songs = pl.scan_ndjson(f"{source}/song_data/**/*.json", schema=SONG).with_columns(
        pl.col("year").fill_null(0), known("artist_id")
    )
    return songs.sort(
        "year", "duration", "title", "artist_id", "artist_name", "artist_location", "artist_latitude",
        "artist_longitude", descending=True, nulls_last=True,
    ).unique("song_id", keep="first", maintain_order=True)  # fmt: skip


def clean_events(source: str) -> pl.LazyFrame:
    return pl.scan_ndjson(f"{source}/log_data/**/*.json", schema=LOG).with_columns(
        user_id=pl.col("userId").cast(pl.Int64, strict=False)
    )


def one_of_each(plays: pl.LazyFrame, key: list[str]) -> pl.LazyFrame:
    """Of the copies of a play the greatest. Wide rows are sorted only for keys that came more than once: few."""
    facts = ["level", "location", "userAgent", "artist", "song", "length"]
    repeated = plays.group_by(key).len().filter(pl.col("len") > 1).select(key)
    greatest = plays.join(repeated, on=key, how="semi").sort(facts, descending=True, nulls_last=True)
    return pl.concat([
        plays.join(repeated, on=key, how="anti"), greatest.unique(key, keep="first", maintain_order=True)
    ])  # fmt: skip


def songplays_table(events: pl.LazyFrame, songs: pl.LazyFrame) -> pl.LazyFrame:
    key = ["ts", "user_id", "sessionId", "itemInSession"]
    match = songs.group_by("title", "artist_name", pl.col("duration").round(5)).agg(
        pl.col("song_id", "artist_id").sort_by("song_id").first()
    )
    plays = one_of_each(events.filter(pl.col("page") == "NextSong"), key).with_columns(pl.col("length").round(5))
    return plays.join(
        match, left_on=["song", "artist", "length"], right_on=["title", "artist_name", "duration"], how="left"
    ).select(
        pl.struct(key).hash().reinterpret(signed=True).alias("songplay_id"),
        START.alias("start_time"),
        "user_id",
        "level",
        "song_id",
        "artist_id",
        pl.col("sessionId").alias("session_id"),
        "location",
        pl.col("userAgent").alias("user_agent"),
        START.dt.year().alias("year"),
        START.dt.month().cast(pl.Int32).alias("month"),
    )


def users_table(events: pl.LazyFrame) -> pl.LazyFrame:
    """Each fact of a user is the latest known: by time, place in the session, and the value itself."""
    facts = {"first_name": "firstName", "last_name": "lastName", "gender": "gender", "level": "level"}
    place = pl.col("itemInSession").fill_null(0).clip(0, 2**21 - 1)
    versions = (
        events.filter(pl.col("user_id").is_not_null())
        .group_by("user_id", *facts.values())
        .agg((pl.col("ts") * 2**21 + place).max().alias("nth"))
    )
    return versions.group_by("user_id").agg(latest(name, "nth").alias(column) for column, name in facts.items())


def artists_table(songs: pl.LazyFrame) -> pl.LazyFrame:
    columns = {"name": "artist_name", "location": "artist_location", "latitude": "artist_latitude",
               "longitude": "artist_longitude"}  # fmt: skip
    return (
        songs.filter(pl.col("artist_id").is_not_null())
        .group_by("artist_id")
        .agg(latest(name, "year", "song_id").alias(column) for column, name in columns.items())
    )


def time_table(events: pl.LazyFrame) -> pl.LazyFrame:
    starts = events.filter(pl.col("page") == "NextSong").select(START.alias("start_time")).unique()
    start = pl.col("start_time").dt
    return starts.with_columns(
        hour=start.hour().cast(pl.Int32), day=start.day().cast(pl.Int32), week=start.week().cast(pl.Int32),
        weekday=(start.weekday() % 7 + 1).cast(pl.Int32), year=start.year(), month=start.month().cast(pl.Int32),
    )  # fmt: skip


def known(column: str) -> pl.Expr:
    """The column, with null for text that is blank."""
    return pl.when(pl.col(column).cast(pl.String).str.contains(r"\S")).then(column)


def latest(column: str, *order: str) -> pl.Expr:
    """Aggregate: the known value that is last by `order`, ties broken by the value itself."""
    return known(column).sort_by(known(column).is_not_null(), *order, column).last()


def main(source: str, target: str) -> None:
    # Parsed once and kept as columns in memory, as fast as reading a cache; lazily, the logs were parsed twice.
    songs, events = (rows.collect(engine="streaming").lazy() for rows in (clean_songs(source), clean_events(source)))
    tables = {
        "songplays": (songplays_table(events, songs), ("year", "month")),
        "users": (users_table(events), ()),
        "songs": (songs.select("song_id", "title", "artist_id", "duration", "year"), ("year",)),
        "artists": (artists_table(songs), ()),
        "time": (time_table(events), ("year", "month")),
    }
    sinks = []
    for name, (rows, partitions) in tables.items():
        folder = Path(target, name)
        shutil.rmtree(folder, ignore_errors=True)
        files = pl.PartitionBy(folder, key=partitions, include_key=False) if partitions else folder / "0.parquet"
        sinks.append(rows.sink_parquet(files, compression="snappy", mkdir=True, maintain_order=False, lazy=True))
    pl.collect_all(sinks, engine="streaming")


if __name__ == "__main__":
    main(*sys.argv[1:])
