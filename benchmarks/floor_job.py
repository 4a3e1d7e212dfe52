#!/usr/bin/env python3
"""The floor: Spark reads every song and log line once, with a schema, and throws them away. No job on Spark is faster.

    python benchmarks/floor_job.py INPUT

The session and the fields are etl.py's own, so that what the job takes longer is what it does, and not how it is set.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import etl  # noqa: E402


def main(source: str) -> None:
    spark = etl.spark_session(etl.Settings(input=source, output=source))
    for kind, fields in (("song_data", etl.SONG_FIELDS), ("log_data", etl.LOG_FIELDS)):
        files = spark.read.option("recursiveFileLookup", True).option("pathGlobFilter", "*.json")
        files.schema(fields).json(f"{source}/{kind}").write.format("noop").mode("overwrite").save()


if __name__ == "__main__":
    main(sys.argv[1])
