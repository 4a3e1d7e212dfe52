#!/usr/bin/env python3
"""Copies a local directory to the job's input on S3. It sends only files that are new or have changed.

    python upload.py SOURCE                        sends to the address [LAKE] INPUT in dl.cfg
    python upload.py SOURCE s3://BUCKET/PREFIX     sends to another address
    python upload.py SOURCE --dry-run              prints what it would send, and sends nothing
    python upload.py SOURCE --pack                 sends many small JSON files as a few large ones

SOURCE/song_data/a.json becomes ADDRESS/song_data/a.json. The program copies all regular files, including hidden ones,
and follows symbolic links. It compares contents, not times. It never deletes anything. If someone else writes or
removes an object during the run, it leaves that object as it is. If a file cannot be read, or changes while it is read,
the program names the file and goes on with the others. After an interruption, run the same command again: it sends the
rest.

--pack joins the small *.json files that the job would read: those below 64 kB. The small files of each directory two
levels deep become one object, a pack, such as song_data/A/packed.json. The job reads the same records from a pack, but
much faster. A pack has only what SOURCE has now, so do not delete files from SOURCE. Send a directory packed or plain,
not both.

Exit codes: 0 all files are on S3, 1 some are not, 2 wrong command line or configuration, 130 interrupted.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import logging
import os
import stat
import sys
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from botocore.exceptions import BotoCoreError, ClientError
from s3transfer.manager import TransferConfig, TransferManager
from s3transfer.subscribers import BaseSubscriber
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

import etl

log = logging.getLogger("upload")

PART = 8 * 2**20  # bytes; an object from this size on is sent in parts of this size
THREADS = 16  # each may hold a part in memory
BATCH = 1_000  # files in the queue at a time, so that a million need no more memory
PACK, SMALL = "packed.json", 2**16
# Time enough for a part on a slow line. A thread that compares and one that sends may ask at the same time.
CLIENT = {"connect_timeout": 10, "read_timeout": 60, "max_pool_connections": 2 * THREADS}
# What S3 says to the loser of a race, and to a retry whose first try had arrived and its answer got lost.
LOST = {"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "NoSuchUpload"}
FATAL = {0, 301, 401, 403, 404, 501}  # all files would meet it: no answer, no bucket, no right, no conditional writes


class Local(NamedTuple):
    """A file here, as it was when the directory was listed."""

    path: str
    size: int
    changed: int  # time of the last change, in ns


class Item(NamedTuple):
    """What becomes one object: a file, or a pack of several."""

    name: str  # below SOURCE, and below ADDRESS
    files: tuple[Local, ...]
    packed: bool = False

    @property
    def size(self) -> int:
        """Bytes. Those of a pack at most: a file may lack the newline at its end."""
        return sum(file.size + (self.packed and file.size > 0) for file in self.files)


# ------------------------------------------------------------------------------------------------------------------
# What is here
# ------------------------------------------------------------------------------------------------------------------


def found(path: str, name: str = "", above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Item | str]:
    """The file at a path, or all files below it; a line in the place of what cannot be sent."""
    try:
        name.encode()
        facts = os.stat(path)
        here = facts.st_dev, facts.st_ino
        if here in above:
            yield f"{path}: a symbolic link to a directory above it; remove the link"
        elif stat.S_ISDIR(facts.st_mode):
            for entry in os.listdir(path):
                yield from found(os.path.join(path, entry), f"{name}/{entry}".lstrip("/"), above | {here})
        elif stat.S_ISREG(facts.st_mode):
            yield Item(name, (Local(path, facts.st_size, facts.st_mtime_ns),))
        else:
            yield f"{path}: a device, pipe or socket, not a file; remove it"
    except UnicodeEncodeError:
        yield f"{path}: the name is not UTF-8; rename it"
    except OSError as error:
        yield etl.explained(path, error.strerror, error.strerror)


def pack_of(item: Item) -> str:
    """The pack that a file belongs to, or "". One for each directory two levels deep, so a new file changes one."""
    *folders, _ = item.name.split("/")
    small = item.name.endswith(".json") and item.size < SMALL
    return "/".join([*folders[:2], PACK]) if folders and small and etl.is_input(item.name) else ""


def with_packs(items: list[Item]) -> list[Item]:
    """The items with small files joined. A large file that has the name of a pack is in the pack."""
    packs, contents = {pack_of(item) for item in items}, defaultdict(list)
    for item in items:
        contents[pack_of(item) or item.name] += item.files
    return [Item(name, tuple(files), name in packs) for name, files in sorted(contents.items())]


def pieces_of(file: Local, packed: bool) -> Iterator[bytes]:
    """A file's bytes, or its share of a pack. JobError if it cannot be read, or is not as it was listed."""
    last = b"\n"
    try:
        with open(file.path, "rb") as opened:
            if packed and opened.read(3) != b"\xef\xbb\xbf":  # a byte order mark
                opened.seek(0)
            while piece := opened.read(2**20):
                yield piece
                last = piece
            facts = os.fstat(opened.fileno())
    except OSError as error:
        raise etl.JobError(etl.explained(file.path, error.strerror, error.strerror)) from None
    if (facts.st_size, facts.st_mtime_ns) != (file.size, file.changed):
        raise etl.JobError(f"{file.path}: changed during the run; run again when nothing writes to it")
    if packed and not last.endswith(b"\n"):
        yield b"\n"


# ------------------------------------------------------------------------------------------------------------------
# The way to S3
# ------------------------------------------------------------------------------------------------------------------


class Stream(BaseSubscriber):
    """An object's bytes for s3transfer, read once and in order, so that a pack of many GB needs little memory."""

    def __init__(self, pieces: Iterator[bytes], size: int, bar: tqdm) -> None:
        self.pieces, self.size, self.bar = pieces, size, bar
        self.rest, self.crc = bytearray(), 0

    def read(self, size: int = sys.maxsize) -> bytes:
        while len(self.rest) < size and (piece := next(self.pieces, None)) is not None:
            self.rest += piece
        data = bytes(memoryview(self.rest)[:size])
        del self.rest[:size]
        self.crc = zlib.crc32(data, self.crc)
        return data

    def on_queued(self, future: Any, **_: Any) -> None:
        future.meta.provide_transfer_size(self.size)

    def on_progress(self, bytes_transferred: int, **_: Any) -> None:
        self.bar.update(bytes_transferred)


def checksum(crc: int) -> str:
    """A CRC32 as S3 writes it: 0 is AAAAAA==."""
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


class Upload:
    """One run: items go to S3, which holds what `stored` lists."""

    def __init__(self, lake: etl.Bucket, stored: dict[str, etl.File], dry_run: bool, bar: tqdm) -> None:
        self.lake, self.stored, self.dry_run, self.bar = lake, stored, dry_run, bar
        self.root = f"s3://{lake.bucket}/{lake.prefix}"
        self.streams: dict[str, Stream] = {}  # by key, while they are sent
        self.stopped = False
        for operation in ("PutObject", "CompleteMultipartUpload"):  # s3transfer takes no conditions
            lake.client.meta.events.register(f"provide-client-params.s3.{operation}", self.complete)
        config = TransferConfig(PART, PART, THREADS, max_in_memory_upload_chunks=THREADS)
        self.manager = TransferManager(lake.client, config)

    def send_all(self, items: list[Item], counts: Counter[str]) -> None:
        """Sends what is to be sent, and counts the verdicts: new, changed, unchanged, failed."""
        with ThreadPoolExecutor(THREADS) as pool, self.manager:
            try:
                for start in range(0, len(items), BATCH):
                    for verdict, size, text in pool.map(self.handle, items[start : start + BATCH]):
                        counts.update({verdict: 1, "bytes": size})
                        if text:
                            (log.error if verdict == "failed" else tqdm.write)(shown(text))
            except BaseException:
                self.stopped = True
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def handle(self, item: Item) -> tuple[str, int, str]:
        """Sends an item if need be. The verdict, the bytes sent, and a line: why it failed, or what a dry run shows."""
        stored = self.stored.get(item.name)
        verdict = "changed" if stored else "new"
        try:
            if stored and self.same(item, stored):
                self.bar.update(item.size)
                return "unchanged", 0, ""
            if self.dry_run:
                more = f" and {len(item.files) - 1:,} more" if len(item.files) > 1 else ""
                return verdict, item.size, f"{verdict:8} {item.files[0].path}{more} -> {self.root}{item.name}"
            self.send(item)
        except etl.JobError as error:
            if isinstance(error, etl.StoreError) and (error.status in FATAL or "Token" in error.code):
                raise
            return "failed", 0, str(error)
        return verdict, item.size, ""

    def same(self, item: Item, stored: etl.File) -> bool:
        """Whether the object has the item's content: its ETag may be the MD5, else HEAD has the CRC32 of most."""
        if item.size != stored.size and not item.packed:
            return False
        md5, crc = hashlib.md5(usedforsecurity=False), 0
        for piece in self.pieces(item):
            md5.update(piece)
            crc = zlib.crc32(piece, crc)
        etag = stored.mark.split()[1].strip('"')
        return md5.hexdigest() == etag or checksum(crc) == self.stored_checksum(item)

    def pieces(self, item: Item) -> Iterator[bytes]:
        """The bytes of the object that the item becomes."""
        for file in item.files:
            for piece in pieces_of(file, item.packed):
                if self.stopped:
                    raise etl.JobError(f"{file.path}: interrupted")
                yield piece

    def send(self, item: Item) -> None:
        """Stores the object. JobError if someone else has written or removed it since S3 was listed."""
        key = self.lake.prefix + item.name
        stream = self.streams[key] = Stream(self.pieces(item), item.size, self.bar)
        kind = {"ChecksumAlgorithm": "CRC32", "ChecksumType": "FULL_OBJECT"}
        try:
            self.manager.upload(stream, self.lake.bucket, key, kind, [stream]).result()
        except (BotoCoreError, ClientError) as error:
            refusal = etl.StoreError(self.root + item.name, error)
            if refusal.code not in LOST:
                raise refusal from None
            if self.stored_checksum(item) != checksum(stream.crc):
                raise etl.JobError(f"{self.root}{item.name}: someone else wrote or removed it; run again") from None
        finally:
            del self.streams[key]

    def complete(self, params: dict[str, Any], **_: Any) -> None:
        """Adds to a write the state that S3 must still be in, and the checksum of what must have arrived."""
        stored = self.stored.get(params["Key"].removeprefix(self.lake.prefix))
        params.update({"IfMatch": stored.mark.split()[1]} if stored else {"IfNoneMatch": "*"})
        params["ChecksumCRC32"] = checksum(self.streams[params["Key"]].crc)

    def stored_checksum(self, item: Item) -> str | None:
        """The CRC32 of the whole object, as S3 writes it; None if it has none, or does not exist."""
        try:
            head = self.lake.ask("head_object", Key=self.lake.prefix + item.name, ChecksumMode="ENABLED")
        except etl.StoreError as error:
            if error.code != "404":
                raise
            return None
        return head.get("ChecksumCRC32")


# ------------------------------------------------------------------------------------------------------------------
# Commands
# ------------------------------------------------------------------------------------------------------------------


def shown(text: str) -> str:
    """The text, fit for one line of a terminal, whatever characters a file's name has."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def listed(lake: etl.Bucket, options: argparse.Namespace) -> dict[str, etl.File]:
    """What is stored. Creates a missing bucket if the user asks for it; S3 makes it private and encrypted."""
    try:
        return lake.files("")
    except etl.StoreError as error:
        if not options.create_bucket or error.code != "NoSuchBucket":
            raise
    if not options.dry_run:
        region = lake.client.meta.region_name
        away = region not in (None, "aws-global", "us-east-1")
        lake.ask("create_bucket", **({"CreateBucketConfiguration": {"LocationConstraint": region}} if away else {}))
        log.warning("created bucket %s", lake.bucket)
    return {}


def run(options: argparse.Namespace) -> int:
    """The whole upload; the exit code."""
    settings = etl.read_settings(options.config, input=options.address)
    if not os.path.isdir(options.source):
        raise etl.UsageError(f"{options.source}: not a directory; name the one that holds song_data and log_data")
    if not etl.on_s3(settings.input):
        raise etl.UsageError(f"{settings.input}: not on S3; give s3://BUCKET/PREFIX as ADDRESS or as [LAKE] INPUT")
    started, counts, lake = time.monotonic(), Counter(), etl.Bucket(settings.input, settings)
    lake.client = etl.s3_client(settings, **CLIENT)
    stored, here = listed(lake, options), list(found(options.source))
    files = sorted(each for each in here if isinstance(each, Item))
    items = with_packs(files) if options.pack else files
    both = {name for file in files for name in (file.name, pack_of(file))}
    if twice := both.intersection(stored) - {item.name for item in items}:
        text = "%d objects hold the same records, packed or plain, such as %s; the job reads both, so remove one kind"
        log.warning(text, len(twice), shown(min(twice)))
    for trouble in sorted(each for each in here if isinstance(each, str)):
        log.error(shown(trouble))
        counts["failed"] += 1
    bar = tqdm(total=sum(item.size for item in items), unit="B", unit_scale=True, disable=None)
    try:
        with bar, logging_redirect_tqdm():
            Upload(lake, stored, options.dry_run, bar).send_all(items, counts)
    finally:
        figures = [(name, counts[name]) for name in ("new", "changed", "unchanged", "failed", "bytes")]
        print(*(f"{name} {count:,}," for name, count in figures), f"seconds {time.monotonic() - started:.1f}")
    return 1 if counts["failed"] else 0


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="upload.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE", help="the local directory to copy")
    parser.add_argument("address", metavar="ADDRESS", nargs="?", help="s3://BUCKET/PREFIX (default: [LAKE] INPUT)")
    parser.add_argument("--config", default="dl.cfg", metavar="FILE", help="the configuration (default: dl.cfg)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be sent, but send nothing")
    parser.add_argument("--pack", action="store_true", help="join small JSON files into one object for each directory")
    parser.add_argument("--create-bucket", action="store_true", help="create the bucket if it does not exist")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the upload; the exit code tells how it went."""
    options = arguments(argv)
    logging.basicConfig(format="%(message)s")
    try:
        return run(options)
    except (etl.JobError, OSError) as error:
        log.error(shown(etl.one_line(error)))
        return getattr(error, "exit_code", 1)
    except KeyboardInterrupt:
        log.error("interrupted; run the same command again: it sends the rest")
        return 130


if __name__ == "__main__":
    sys.exit(main())
