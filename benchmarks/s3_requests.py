"""Counts the job's S3 requests by operation: all of the input by its own committer and by Spark's classic one, one day.

    python benchmarks/s3_requests.py            500 song files and 30 log files; writes benchmarks/s3_requests.md

Requests are a part of what a run costs, and most of its time when files are small. They are counted by a proxy on
loopback, between the job and a moto server.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from faultproxy import fault_proxy  # noqa: E402
from s3 import Server, moto_server  # noqa: E402

import upload  # noqa: E402

CLASSIC = """
import etl
connect = etl.connect_s3
def connect_classic(spark, settings):
    connect(spark, settings)
    spark.conf.unset("spark.sql.sources.commitProtocolClass")
    spark.conf.unset("spark.sql.parquet.output.committer.class")
etl.connect_s3 = connect_classic
"""
JOB = "import sys\nsys.exit(etl.main(sys.argv[1:]))"
PROGRAMS = {"classic": CLASSIC + JOB, "own": "import etl\n" + JOB}
OF_INPUT = "{}, of a file of input"


def counted(server: Server, committer: str, place: Path, last: Path) -> tuple[Counter[str], Counter[str]]:
    """Requests by operation of a night that adds the last log file, and of a full run, which has tables to replace.

    HEAD and GET also of files of the input alone.
    """
    client, key = server.client(), last.relative_to(place / "lake").as_posix()
    client.create_bucket(Bucket=committer)
    client.delete_object(Bucket="raw", Key=key)
    with fault_proxy(server.endpoint) as proxy:
        config = server.behind(proxy.endpoint).dl_cfg(place / "dl.cfg", "s3://raw", OUTPUT=f"s3://{committer}/tables")
        command = [sys.executable, "-c", PROGRAMS[committer], "--config", str(config)]

        def run(*options: str) -> Counter[str]:
            proxy.forget()
            env = {**os.environ, "AWS_EC2_METADATA_DISABLED": "true"}
            subprocess.run([*command, *options], cwd=ROOT, check=True, env=env)
            reads = (asked for asked in proxy.requests if re.match(r"/raw/.*\.json", asked.path))
            return proxy.counts() + Counter(OF_INPUT.format(asked.operation) for asked in reads)

        run()
        client.upload_file(str(last), "raw", key)
        return run(), run("--full")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--songs", type=int, default=500)
    parser.add_argument("--days", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, moto_server() as server:
        place = Path(directory)
        sizes = ["--songs", str(options.songs), "--days", str(options.days), "--events", "20000"]
        generator = [sys.executable, str(ROOT / "benchmarks" / "generate.py"), str(place / "lake")]
        subprocess.run([*generator, *sizes], check=True)
        server.client().create_bucket(Bucket="raw")
        if upload.main([str(place / "lake"), "--config", str(server.dl_cfg(place / "dl.cfg", "s3://raw"))]):
            return 1
        last = max((place / "lake" / "log_data").rglob("*.json"))
        _, classic = counted(server, "classic", place, last)
        night, own = counted(server, "own", place, last)
    of_input = [OF_INPUT.format(operation) for operation in ("HEAD", "GET")]
    operations = sorted({*classic, *own, *night} - {*of_input}, key=lambda name: -classic[name])
    totals = [sum(run[name] for name in operations) for run in (classic, own, night)]
    lines = [
        "# S3 requests of a run",
        "",
        f"Made by `python benchmarks/s3_requests.py`: {options.songs} song and {options.days} log files. All of them",
        "are read and the tables that are there replaced (`--full`), or one of the log files is new.",
        "",
        "| request | all, classic committer | all, the job's | one new log file |",
        "|---|---:|---:|---:|",
        *(f"| {name} | {classic[name]:,} | {own[name]:,} | {night[name]:,} |" for name in operations),
        f"| **all** | {' | '.join(f'**{number:,}**' for number in totals)} |",
        *(f"| {name} | {classic[name]:,} | {own[name]:,} | {night[name]:,} |" for name in of_input),
    ]
    (ROOT / "benchmarks" / "s3_requests.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
