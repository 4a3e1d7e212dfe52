#!/usr/bin/env python3
"""The usual script: what public Spark scripts for this data do, put together in one plain program.

    python benchmarks/usual_job.py INPUT OUTPUT

Each habit below is common, and each costs time or makes wrong rows:

- The schema is inferred, which reads everything once more. The plays are cached whole.
- Python makes the time of every play, so every row goes to a Python process and back.
- dropDuplicates takes any one row of a user, song or artist, and only users who played something.
- A play of which two songs fit becomes two rows. A song's year is part of no order, and blanks are values.
- songplay_id is another number on every run. mode("overwrite") empties a table before it is written.
- Songs lie by year and artist: a file for nearly every song. Nothing sizes the files.
"""

import sys
from datetime import datetime

from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import TimestampType


def songs_and_artists(spark: SparkSession, source: str, target: str) -> None:
    raw = spark.read.json(f"{source}/song_data/*/*/*/*.json")
    songs = raw.select("song_id", "title", "artist_id", "duration", "year").dropDuplicates(["song_id"])
    songs.write.mode("overwrite").partitionBy("year", "artist_id").parquet(f"{target}/songs")
    artists = raw.selectExpr(
        "artist_id", "artist_name AS name", "artist_location AS location", "artist_latitude AS latitude",
        "artist_longitude AS longitude",
    ).dropDuplicates(["artist_id"])  # fmt: skip
    artists.write.mode("overwrite").parquet(f"{target}/artists")


def users_time_and_songplays(spark: SparkSession, source: str, target: str) -> None:
    plays = spark.read.json(f"{source}/log_data/*/*/*.json").where("page = 'NextSong'")
    moment = F.udf(lambda ms: datetime.fromtimestamp(ms / 1000), TimestampType())
    plays = plays.withColumn("start_time", moment("ts")).cache()

    users = plays.selectExpr(
        "CAST(userId AS BIGINT) AS user_id", "firstName AS first_name", "lastName AS last_name", "gender", "level"
    ).dropDuplicates(["user_id"])
    users.write.mode("overwrite").parquet(f"{target}/users")

    time = plays.select("start_time").dropDuplicates().selectExpr(
        "start_time", "hour(start_time) AS hour", "dayofmonth(start_time) AS day", "weekofyear(start_time) AS week",
        "dayofweek(start_time) AS weekday", "year(start_time) AS year", "month(start_time) AS month",
    )  # fmt: skip
    time.write.mode("overwrite").partitionBy("year", "month").parquet(f"{target}/time")

    songs = spark.read.json(f"{source}/song_data/*/*/*/*.json")
    same = (plays.song == songs.title) & (plays.artist == songs.artist_name) & (plays.length == songs.duration)
    songplays = plays.join(songs, same, "left").selectExpr(
        "monotonically_increasing_id() AS songplay_id", "start_time", "CAST(userId AS BIGINT) AS user_id", "level",
        "song_id", "artist_id", "sessionId AS session_id", "location", "userAgent AS user_agent",
        "year(start_time) AS year", "month(start_time) AS month",
    )  # fmt: skip
    songplays.write.mode("overwrite").partitionBy("year", "month").parquet(f"{target}/songplays")


def main(source: str, target: str) -> None:
    spark = SparkSession.builder.appName("usual").getOrCreate()
    songs_and_artists(spark, source, target)
    users_time_and_songplays(spark, source, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
