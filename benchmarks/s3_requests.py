"""Counts the job's requests to S3, by a proxy on loopback between the job and a moto server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from faultproxy import fault_proxy  # noqa: E402
from s3 import moto_server  # noqa: E402


def counted(lake: Path, place: Path, *options: str) -> dict[str, int]:
    """The requests, by operation, of a run that finds one new log file beside the tables of the others."""
    last, config = max((lake / "log_data").rglob("*.json")), place / "dl.cfg"
    with moto_server() as server, fault_proxy(server.endpoint) as proxy:
        server.behind(proxy.endpoint).dl_cfg(config, "s3://raw", OUTPUT="s3://tables/lake")
        client = server.client()
        for bucket in ("raw", "tables"):
            client.create_bucket(Bucket=bucket)
        for file in sorted(lake.rglob("*.json"), key=lambda file: file == last):
            if file == last:
                run(config)
            client.upload_file(str(file), "raw", file.relative_to(lake).as_posix())
        proxy.forget()
        run(config, *options)
        counts = proxy.counts()
    return {"requests": counts.total(), **dict(counts.most_common())}


def run(config: Path, *options: str) -> None:
    command = [sys.executable, ROOT / "etl.py", "--config", config, *options]
    environment = {**os.environ, "AWS_EC2_METADATA_DISABLED": "true"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"etl.py ended with {done.returncode}: {done.stderr[-3000:]}")
