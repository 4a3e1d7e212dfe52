"""Real S3 servers on loopback for the tests and benchmarks: moto's (cheap) and MinIO (faithful).

with moto_server() as s3:
    s3.client().create_bucket(Bucket="lake")
    ...                      # or any program, told s3.endpoint, s3.access_key and s3.secret_key
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparkify-etl"
MINIO_VERSION = "v0.0.0-20260212201848-7aac2a2c5b7c"  # a pseudo-version: the Go module proxy keeps no RELEASE tags
PATIENCE = 60  # seconds for a server to come up


@dataclass(frozen=True)
class Server:
    """Where an S3 server listens, and the keys it takes."""

    endpoint: str
    access_key: str
    secret_key: str
    pid: int
    log: Path
    region: str = "us-east-1"

    def client(self, **config: Any) -> Any:
        """A boto3 client for looking at what a test did; keywords go to botocore's Config."""
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(**{"s3": {"addressing_style": "path"}, **config}),
        )

    def behind(self, endpoint: str) -> Server:
        """The same server, seen through a proxy."""
        return replace(self, endpoint=endpoint)

    def with_keys(self, access_key: str, secret_key: str) -> Server:
        """The same server, asked with other keys; moto takes any."""
        return replace(self, access_key=access_key, secret_key=secret_key)

    def dl_cfg(self, path: Path, address: str, **lake: str) -> Path:
        """Writes a dl.cfg for this server at `path`; keywords are further keys of [LAKE]."""
        keys = {"INPUT": address, "OUTPUT": "output", "ENDPOINT": self.endpoint, "REGION": self.region, **lake}
        lines = ["[AWS CREDS]", f"AWS_ACCESS_KEY_ID = {self.access_key}", f"AWS_SECRET_ACCESS_KEY = {self.secret_key}"]
        lines += ["", "[LAKE]", *(f"{key} = {value}" for key, value in keys.items())]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        path.chmod(0o600)
        return path


def objects(client: Any, bucket: str, prefix: str = "") -> dict[str, bytes]:
    """Every object below the prefix, by key."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
    return {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


def open_uploads(client: Any, bucket: str, prefix: str = "") -> list[str]:
    """The keys of the unfinished multipart uploads. MinIO lists those of one key only: name it as prefix."""
    return [upload["Key"] for upload in client.list_multipart_uploads(Bucket=bucket, Prefix=prefix).get("Uploads", ())]


@contextmanager
def moto_server() -> Iterator[Server]:
    """A moto server in a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with process("moto", command, port) as (pid, log):
        yield Server(f"http://127.0.0.1:{port}", "testing", "testing-secret", pid, log)


@contextmanager
def minio_server() -> Iterator[Server]:
    """A MinIO server on one empty disk, in a process of its own; the first use builds it, which takes minutes."""
    binary = minio_binary()
    port = free_port()
    keys = {"MINIO_ROOT_USER": "testing", "MINIO_ROOT_PASSWORD": "testing-secret"}
    # KMS with a key for the tests only, so that SSE-KMS works
    kms = {"MINIO_KMS_SECRET_KEY": "lake-key:" + "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="}
    quiet = {"MINIO_BROWSER": "off", "MINIO_UPDATE": "off", "MINIO_CALLHOME_ENABLE": "off"}
    with tempfile.TemporaryDirectory(prefix="minio-") as disk:
        command = [str(binary), "server", "--quiet", "--address", f"127.0.0.1:{port}", disk]
        with process("minio", command, port, {**keys, **kms, **quiet}) as (pid, log):
            yield Server(f"http://127.0.0.1:{port}", "testing", "testing-secret", pid, log)


def minio_binary() -> Path:
    """The MinIO program in the cache folder, built by Go when it is not there."""
    binary = CACHE / "minio" / MINIO_VERSION / "minio"
    if not binary.exists():
        if not shutil.which("go"):
            raise RuntimeError("MinIO is built by Go, and there is no go on the PATH: install Go (https://go.dev/dl)")
        print(f"building MinIO {MINIO_VERSION}; this takes some minutes, once", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="minio-build-") as place:
            command = ["go", "install", f"github.com/minio/minio@{MINIO_VERSION}"]
            subprocess.run(command, env={**os.environ, "GOBIN": place, "CGO_ENABLED": "0"}, check=True)
            binary.parent.mkdir(parents=True, exist_ok=True)
            unfinished = binary.with_name(f"minio.{os.getpid()}")
            shutil.copy2(Path(place) / "minio", unfinished)
            unfinished.replace(binary)
    return binary


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def process(
    name: str, command: Sequence[str], port: int, environment: dict[str, str] | None = None
) -> Iterator[tuple[int, Path]]:
    """Runs the command until it listens on the port, and ends it by its pid whatever happens. Yields pid and log."""
    handle, path = tempfile.mkstemp(prefix=f"{name}-", suffix=".log")
    log = Path(path)
    with os.fdopen(handle, "wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **(environment or {})})
    try:
        wait_for(name, child, port, log)
        yield child.pid, log
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        log.unlink()


def wait_for(name: str, child: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while child.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"{name} did not come up: {log.read_text(errors='replace')[-2000:]}")
