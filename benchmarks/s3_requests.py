"""Counts the job's S3 requests by operation: the job's own committer against Spark's classic one.

    python benchmarks/s3_requests.py            500 song files and 30 log files; writes benchmarks/s3_requests.md

Requests are a part of what a run costs, and most of its time when files are small. They are counted by a proxy on
loopback, between the job and a moto server.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
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


def counted(server: Server, committer: str, place: Path) -> tuple[Counter[str], float]:
    """Requests by operation, and seconds, of a second run: one that has a table to replace."""
    client = server.client()
    client.create_bucket(Bucket=committer)
    with fault_proxy(server.endpoint) as proxy:
        config = server.behind(proxy.endpoint).dl_cfg(place / "dl.cfg", "s3://raw", OUTPUT=f"s3://{committer}/tables")
        command = [sys.executable, "-c", PROGRAMS[committer], "--config", str(config)]
        for _ in range(2):
            proxy.forget()
            since = time.monotonic()
            subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "AWS_EC2_METADATA_DISABLED": "true"})
            seconds = time.monotonic() - since
        return proxy.counts(), seconds


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
        counts = {committer: counted(server, committer, place)[0] for committer in PROGRAMS}
    operations = sorted(set().union(*counts.values()), key=lambda name: -counts["classic"][name])
    lines = [
        "# S3 requests of a run",
        "",
        f"Made by `python benchmarks/s3_requests.py`: {options.songs} song and {options.days} log files, and tables",
        "that are there already and are replaced.",
        "",
        "| request | classic committer | the job's |",
        "|---|---|---|",
        *(f"| {name} | {counts['classic'][name]:,} | {counts['own'][name]:,} |" for name in operations),
        f"| **all** | **{counts['classic'].total():,}** | **{counts['own'].total():,}** |",
    ]
    (ROOT / "benchmarks" / "s3_requests.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
