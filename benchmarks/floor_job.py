#!/usr/bin/env python3
"""The floor: Spark reads every song and log line once, with a schema, and throws them away. No job on Spark is faster.

    python benchmarks/floor_job.py INPUT

Session and fields are etl.py's own: the difference is what the job does, and not how Spark is set.
"""

import sys
from pathlib import Path

from pyspark.sql import SparkSession

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import etl  # noqa: E402


def main(source: str) -> None:
    builder = SparkSession.builder.appName("floor")
    for key, value in {**etl.local_session(False), **etl.SESSION}.items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    for kind, fields in (("song_data", etl.SONG_FIELDS), ("log_data", etl.LOG_FIELDS)):
        files = spark.read.option("recursiveFileLookup", True).option("pathGlobFilter", "*.json")
        files.schema(fields).json(f"{source}/{kind}").write.format("noop").mode("overwrite").save()


if __name__ == "__main__":
    main(sys.argv[1])
