#!/usr/bin/env python3
"""Copies a local directory into the lake's raw zone on S3: what is new and what differs, and nothing else.

    python upload.py SOURCE                        to [LAKE] INPUT of dl.cfg
    python upload.py SOURCE s3://BUCKET/PREFIX     to another address
    python upload.py SOURCE --dry-run              only prints what would be done
    python upload.py SOURCE --pack                 many small JSON files as few larger ones

SOURCE/song_data/a.json lands at ADDRESS/song_data/a.json. Every regular file is copied and symbolic links are followed,
as `aws s3 sync` does; hidden files too. A file is sent when the lake has none of its name, or one with another content,
whatever the times say. Nothing is ever deleted, and nothing is overwritten that someone else wrote meanwhile. After an
interruption, run it again: it goes on from there, and removes the multipart uploads left open.

--pack joins the *.json files below 64 kB of each folder two levels deep (song_data/A) into one object, a record a line
(song_data/A/packed.json), which the job reads just as well and far faster. Ship a folder packed or plain, not both: the
job would count every record once, but read it twice.

Exit codes: 0 all is in the lake, 1 some failed (named), 2 wrong usage or configuration, 130 interrupted.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import http.client
import logging
import os
import ssl
import stat
import sys
import threading
import time
import urllib.request
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from tqdm import tqdm

from etl import JobError, Settings, UsageError, aws_session, on_s3, read_settings, s3_client

log = logging.getLogger("upload")

MB = 2**20
PART = 8 * MB  # a file above this goes by multipart, in parts of this size
MOST_PARTS = 10_000  # S3's limit
THREADS, PART_THREADS = 64, 16  # a tiny PUT is all waiting; a part is 8 MB of memory
PACK, PACK_BELOW = "packed.json", 2**16
CLIENT = {
    "retries": {"mode": "standard", "total_max_attempts": 10},  # about a minute; boto3's own default is 3 attempts
    "max_pool_connections": THREADS,
    "connect_timeout": 10,
    "read_timeout": 60,
}


class File(NamedTuple):
    """What lies here and is to lie there: one local file, or several packed into one object."""

    key: str
    paths: tuple[str, ...]
    stamps: tuple[tuple[int, int], ...]  # (bytes, time of change in ns) of each, when the directory was read
    packed: bool = False

    @property
    def size(self) -> int:
        return sum(size for size, _ in self.stamps)

    @property
    def large(self) -> bool:
        return self.size > PART and not self.packed


class Stored(NamedTuple):
    """An object in the lake, as LIST tells it."""

    size: int
    etag: str


class Action(NamedTuple):
    """One step of the plan."""

    verb: str  # new, changed, unchanged; or abort: end a multipart upload that a killed run left open
    key: str
    file: File | None = None
    etag: str = ""  # of the object that is to be replaced
    upload_id: str = ""


class Trouble(Exception):
    """Why one file stays behind, in one line. The others go on."""

    def __init__(self, path: str, text: str) -> None:
        super().__init__(f"{shown(path)}: {text}")


def shown(path: str) -> str:
    """The path, fit to print whatever its bytes."""
    return path.encode("utf-8", "backslashreplace").decode()


# ------------------------------------------------------------------------------------------------------------------
# The plan: what is to be done, decided from what is here and what is there
# ------------------------------------------------------------------------------------------------------------------


def plan(
    files: Iterable[File], lake: dict[str, Stored], same: set[str], left_open: Iterable[tuple[str, str]]
) -> list[Action]:
    """The actions, in order. `same` holds the keys whose content was compared and is equal."""
    aborts = [Action("abort", key, upload_id=upload_id) for key, upload_id in left_open]
    return aborts + [verdict(file, lake.get(file.key), file.key in same) for file in files]


def verdict(file: File, stored: Stored | None, same: bool) -> Action:
    if stored is None:
        return Action("new", file.key, file)
    return Action("unchanged" if same else "changed", file.key, file, stored.etag)


def undecided(file: File, stored: Stored | None) -> bool:
    """Whether only the content tells if the file differs from what is stored. A pack's size is not known before."""
    return stored is not None and (file.packed or file.size == stored.size)


def packed(files: Iterable[File], prefix: str) -> list[File]:
    """The files with the small JSON ones of each folder two levels deep made one: a new file changes one pack."""
    packs, plain = defaultdict(list), []
    for file in files:
        *folders, name = file.key[len(prefix) :].split("/")
        # A file that has the pack's own name is packed whatever its size, so that no two want one key.
        small = (name.endswith(".json") and file.size < PACK_BELOW) or name == PACK
        (packs["/".join([*folders[:2], PACK])] if folders and small else plain).append(file)
    joined = [
        File(prefix + key, tuple(m.paths[0] for m in members), tuple(m.stamps[0] for m in members), packed=True)
        for key, members in packs.items()
    ]
    return sorted(plain + joined)


def parts_of(size: int) -> list[tuple[int, int, int]]:
    """Number, start and size of the parts of a large file: of PART bytes, or as long as 10,000 parts need."""
    step = max(PART, -(-size // (MOST_PARTS * MB)) * MB)
    return [(number, start, min(step, size - start)) for number, start in enumerate(range(0, size, step), 1)]


def is_md5(etag: str) -> bool:
    """Whether the ETag may be the MD5 of the content: not after multipart, where it has a dash."""
    return "-" not in etag


def crc_text(crc: int) -> str:
    """A CRC32 as S3 writes it.

    >>> crc_text(zlib.crc32(b"123456789"))
    'y/Q5Jg=='
    """
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


def crc_joined(first: int, second: int, size: int) -> int:
    """The CRC32 of two byte strings put together, from theirs and the second's size.

    Shifts the first by `size` bytes: a product of polynomials over GF(2), modulo CRC32's, by squaring.

    >>> crc_joined(zlib.crc32(b"12345"), zlib.crc32(b"6789"), 4) == zlib.crc32(b"123456789")
    True
    """
    power = 1 << 23  # x to the 8: one byte
    while size:
        if size & 1:
            first = crc_product(first, power)
        power = crc_product(power, power)
        size >>= 1
    return first ^ second


def crc_of_parts(parts: Iterable[tuple[int, int, int]], crcs: Iterable[int]) -> int:
    whole = 0
    for (_, _, size), crc in zip(parts, crcs, strict=True):
        whole = crc_joined(whole, crc, size)
    return whole


def crc_product(a: int, b: int) -> int:
    product = 0
    for bit in range(31, -1, -1):  # CRC32's bits are mirrored: the highest is x to the 0
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (0xEDB88320 if b & 1 else 0)
    return product


# ------------------------------------------------------------------------------------------------------------------
# Local files
# ------------------------------------------------------------------------------------------------------------------


def scanned(source: str, prefix: str) -> tuple[list[File], list[str]]:
    """The files below the directory by key, and the troubles met, each in one line."""
    files, troubles = [], []

    def visit(directory: str, base: str, above: frozenset[tuple[int, int]]) -> None:
        here = os.stat(directory)
        if (here.st_dev, here.st_ino) in above:
            raise Trouble(directory, "a symbolic link that leads back to a folder above it; remove the link")
        for entry in os.scandir(directory):
            with noted(entry.path, troubles):
                key = base + entry.name
                if entry.is_dir():
                    visit(entry.path, key + "/", above | {(here.st_dev, here.st_ino)})
                else:
                    files.append(regular(entry, key))

    with noted(source, troubles):
        visit(source, prefix, frozenset())
    return sorted(files), sorted(troubles)


def regular(entry: os.DirEntry[str], key: str) -> File:
    facts = entry.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise Trouble(entry.path, "a device, pipe or socket, not a file")
    try:
        if len(key.encode("utf-8")) > 1024:
            raise Trouble(entry.path, "longer than the 1,024 bytes that an S3 key can have; shorten the path")
    except UnicodeEncodeError:
        raise Trouble(entry.path, "its name is not UTF-8; rename it") from None
    return File(key, (entry.path,), (stamp(facts),))


def stamp(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_size, facts.st_mtime_ns


@contextmanager
def noted(path: str, troubles: list[str]) -> Iterator[None]:
    """Turns what goes wrong with one path into a line, so that the others go on."""
    try:
        yield
    except BotoCoreError:  # some are OSErrors too: of the network, not of the file
        raise
    except OSError as error:
        troubles.append(str(Trouble(path, f"{error.strerror}; make it readable, or remove it")))
    except Trouble as trouble:
        troubles.append(str(trouble))


def content(file: File) -> bytes:
    """All bytes of a file or pack. Trouble if they are not those of the files that were planned."""
    texts = []
    for path, planned in zip(file.paths, file.stamps, strict=True):
        with reading(path) as opened:
            texts.append(opened.readall())
            if stamp(os.fstat(opened.fileno())) != planned or len(texts[-1]) != planned[0]:
                raise changed(path)
    return b"".join(map(whole_lines, texts)) if file.packed else texts[0]


def whole_lines(text: bytes) -> bytes:
    """A file's share of a pack: without byte order mark, and with the last newline that many lack."""
    text = text.removeprefix(b"\xef\xbb\xbf")
    return text if not text or text.endswith(b"\n") else text + b"\n"


@contextmanager
def reading(path: str) -> Iterator[Any]:
    """The open file; what goes wrong with it is Trouble."""
    try:
        with open(path, "rb", buffering=0) as file:
            yield file
    except BotoCoreError:  # some are OSErrors too: of the network, not of the file
        raise
    except FileNotFoundError:
        raise Trouble(path, "vanished meanwhile") from None
    except OSError as error:
        raise Trouble(path, f"{error.strerror}; make it readable and run again") from None


def check_stamp(file: File, descriptor: int) -> None:
    if stamp(os.fstat(descriptor)) != file.stamps[0]:
        raise changed(file.paths[0])


def changed(path: str) -> Trouble:
    return Trouble(path, "changed while it was read; run again when it is at rest")


def md5_of(file: File) -> str:
    """The content's MD5, as S3 writes an ETag."""
    md5 = hashlib.md5(usedforsecurity=False)
    for piece in pieces(file) if file.large else [content(file)]:
        md5.update(piece)
    return md5.hexdigest()


def pieces(file: File) -> Iterator[bytes]:
    """A large file's bytes, in order."""
    with reading(file.paths[0]) as opened:
        for _, start, size in parts_of(file.size):
            yield part(file, opened.fileno(), start, size)
        check_stamp(file, opened.fileno())


def part(file: File, descriptor: int, start: int, size: int) -> bytes:
    body = os.pread(descriptor, size, start)
    if len(body) != size:
        raise changed(file.paths[0])
    return body


def crc_of(file: File, each: Callable[..., Iterable[int]] = map) -> str:
    """The content's CRC32. `each` is map, or a pool's map: the parts of a large file are read in parallel."""
    if not file.large:
        return crc_text(zlib.crc32(content(file)))
    parts = parts_of(file.size)
    with reading(file.paths[0]) as opened:
        crcs = list(each(lambda p: zlib.crc32(part(file, opened.fileno(), p[1], p[2])), parts))
        check_stamp(file, opened.fileno())
    return crc_text(crc_of_parts(parts, crcs))


# ------------------------------------------------------------------------------------------------------------------
# S3
# ------------------------------------------------------------------------------------------------------------------

# What a conditional write meets that has lost a race. A retry whose first try arrived, unheard, meets them as well.
LOST = {"PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "NoSuchUpload"}


class Lake:
    """The place on S3 that the files go to."""

    def __init__(self, settings: Settings) -> None:
        self.bucket, _, prefix = settings.input.partition("://")[2].partition("/")
        self.prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self.client = s3_client(settings, **CLIENT)
        self.place = {"Bucket": self.bucket}
        if settings.expected_bucket_owner:
            self.place["ExpectedBucketOwner"] = settings.expected_bucket_owner
        self.encryption = {"ServerSideEncryption": settings.sse} if settings.sse else {}
        if settings.kms_key_id:
            self.encryption["SSEKMSKeyId"] = settings.kms_key_id
        self.quick = QuickPut(self.client, aws_session(settings).get_credentials(), self.bucket)

    def create_bucket(self) -> None:
        """A private bucket: no public access, encrypted by default."""
        region = self.client.meta.region_name
        away = region not in (None, "aws-global", "us-east-1")
        self.client.create_bucket(
            Bucket=self.bucket, **({"CreateBucketConfiguration": {"LocationConstraint": region}} if away else {})
        )
        log.info("created bucket %s", self.bucket)
        names = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
        try:
            self.client.put_public_access_block(**self.place, PublicAccessBlockConfiguration=dict.fromkeys(names, True))
        except ClientError as error:
            if code(error) not in ("NotImplemented", "MalformedXML", "MethodNotAllowed"):
                raise
            log.warning("this store has no block on public access; the bucket is private unless a policy opens it")
        default = {"SSEAlgorithm": self.encryption.get("ServerSideEncryption", "AES256")}
        if "SSEKMSKeyId" in self.encryption:
            default["KMSMasterKeyID"] = self.encryption["SSEKMSKeyId"]
        # With a bucket key, KMS is asked once for many objects, not once for each.
        rule = {"ApplyServerSideEncryptionByDefault": default, "BucketKeyEnabled": "KMSMasterKeyID" in default}
        self.client.put_bucket_encryption(**self.place, ServerSideEncryptionConfiguration={"Rules": [rule]})

    def bucket_exists(self) -> bool:
        try:
            self.client.head_bucket(**self.place)
        except ClientError as error:
            if code(error) != "404":
                raise
            return False
        return True

    def listing(self) -> dict[str, Stored]:
        """What lies below the address: one request per 1,000 objects."""
        pages = self.client.get_paginator("list_objects_v2").paginate(**self.place, Prefix=self.prefix)
        entries = (entry for page in pages for entry in page.get("Contents", ()))
        return {entry["Key"]: Stored(entry["Size"], entry["ETag"].strip('"')) for entry in entries}

    def same(self, file: File, stored: Stored, each: Callable[..., Iterable[int]] = map) -> bool:
        """Whether the stored content is the file's.

        After a single PUT under SSE-S3, the ETag that LIST gave is the MD5: equal, and no request is needed. It is not
        after multipart or under SSE-KMS, so a difference proves nothing and HEAD is asked for the checksum. What has
        none that covers the whole object (written by another tool) is sent again, and has one from then on.
        """
        return (is_md5(stored.etag) and md5_of(file) == stored.etag) or self.holds(file, each)

    def holds(self, file: File, each: Callable[..., Iterable[int]] = map) -> bool:
        """Whether the lake holds the file's content, by the checksum that S3 keeps."""
        try:
            head = self.client.head_object(**self.place, Key=file.key, ChecksumMode="ENABLED")
        except ClientError as error:
            if code(error) != "404":
                raise
            return False
        if "ChecksumCRC32" in head:  # one made of the parts' checksums ends in -N, and equals none
            return head["ChecksumCRC32"] == crc_of(file, each)
        return is_md5(head["ETag"]) and head["ETag"].strip('"') == md5_of(file)

    def left_open(self, files: Iterable[File], sent: Iterable[File]) -> list[tuple[str, str]]:
        """Key and id of the multipart uploads that an earlier run of this script left open for one of these files.

        Asked before this run opens any, so each is older. Its own are known by key and by the kind of checksum, where
        the store tells it. One that is still at work in another process loses: only one of two writers can win.
        """
        keys, found = {file.key for file in files}, set()
        for prefix in [self.prefix, *(file.key for file in sent if file.large)]:  # some stores list by whole key only
            for page in self.client.get_paginator("list_multipart_uploads").paginate(**self.place, Prefix=prefix):
                for upload in page.get("Uploads", ()):
                    kind = upload.get("ChecksumAlgorithm", "CRC32"), upload.get("ChecksumType", "FULL_OBJECT")
                    if upload["Key"] in keys and kind == ("CRC32", "FULL_OBJECT"):
                        found.add((upload["Key"], upload["UploadId"]))
        return sorted(found)

    def abort(self, key: str, upload_id: str) -> None:
        with suppress(self.client.exceptions.NoSuchUpload):
            self.client.abort_multipart_upload(**self.place, Key=key, UploadId=upload_id)

    def put(self, action: Action) -> int:
        """Sends a file or pack by one conditional PUT with its checksum; the bytes sent."""
        body = content(action.file)
        wanted = {
            **self.place,
            "Key": action.key,
            "ChecksumAlgorithm": "CRC32",
            "ChecksumCRC32": crc_text(zlib.crc32(body)),
            **condition(action),
            **self.encryption,
        }
        if not self.quick(body, wanted):
            with self.race(action.file):
                self.client.put_object(Body=body, **wanted)
        return len(body)

    def put_in_parts(self, action: Action, pool: ThreadPoolExecutor, progress: Callable[[int], Any]) -> int:
        """Sends a large file by multipart: a checksum with every part, and one over the whole; the bytes sent."""
        kind = {"ChecksumType": "FULL_OBJECT"}
        place = {**self.place, "Key": action.key}
        created = self.client.create_multipart_upload(**place, **kind, ChecksumAlgorithm="CRC32", **self.encryption)
        place["UploadId"] = created["UploadId"]
        try:
            parts, crc = self.send_parts(action.file, place, pool, progress)
            with self.race(action.file):
                self.client.complete_multipart_upload(
                    **place, **kind, **condition(action), MultipartUpload={"Parts": parts}, ChecksumCRC32=crc
                )
        except BaseException:
            with suppress(ClientError, BotoCoreError):  # the next run does it, then
                self.abort(action.key, place["UploadId"])
            raise
        return action.file.size

    def send_parts(
        self, file: File, place: dict[str, str], pool: ThreadPoolExecutor, progress: Callable[[int], Any]
    ) -> tuple[list[dict[str, Any]], str]:
        """The parts as S3 wants them listed, and the CRC32 of the whole."""

        def send(number: int, start: int, size: int) -> tuple[dict[str, Any], int]:
            body = part(file, opened.fileno(), start, size)
            crc = zlib.crc32(body)
            check = {"PartNumber": number, "ChecksumCRC32": crc_text(crc)}
            etag = self.client.upload_part(**place, **check, ChecksumAlgorithm="CRC32", Body=body)["ETag"]
            progress(size)
            return {**check, "ETag": etag}, crc

        ranges = parts_of(file.size)
        with reading(file.paths[0]) as opened:
            futures = [pool.submit(send, *each) for each in ranges]
            try:
                sent = [future.result() for future in futures]
            finally:
                for future in futures:
                    future.cancel()
                wait(futures)  # none may still be reading, or arrive after an abort
            check_stamp(file, opened.fileno())
        return [each for each, _ in sent], crc_text(crc_of_parts(ranges, (crc for _, crc in sent)))

    @contextmanager
    def race(self, file: File) -> Iterator[None]:
        """A conditional write: a lost race is Trouble, unless what lies there now is what was to be sent."""
        try:
            yield
        except ClientError as error:
            if code(error) not in LOST:
                raise
            if not self.holds(file):
                raise Trouble(
                    file.paths[0],
                    f"someone else wrote or removed {file.key} meanwhile, and it was left as it is; run again",
                ) from None


class QuickPut:
    """A PUT with a quarter of boto3's work: signed by botocore, sent by the standard library.

    Tiny files are nothing but requests, and boto3 spends about a millisecond of Python on each. This knows only
    success: after anything else the caller asks boto3, whose retries and errors then count.
    """

    HEADERS = {
        "ChecksumAlgorithm": "x-amz-sdk-checksum-algorithm",
        "ChecksumCRC32": "x-amz-checksum-crc32",
        "IfMatch": "If-Match",
        "IfNoneMatch": "If-None-Match",
        "ExpectedBucketOwner": "x-amz-expected-bucket-owner",
        "ServerSideEncryption": "x-amz-server-side-encryption",
        "SSEKMSKeyId": "x-amz-server-side-encryption-aws-kms-key-id",
    }
    MAY_PASS = {409, 412, 429, 500, 502, 503, 504}  # other refusals would meet every file

    def __init__(self, client: Any, credentials: Credentials | None, bucket: str) -> None:
        self.credentials, self.region = credentials, client.meta.region_name
        self.useful = credentials is not None and not urllib.request.getproxies()
        self.thread = threading.local()
        if self.useful:  # boto3 knows the address: of a region, an endpoint, by path or by host
            signed = client.generate_presigned_url("put_object", {"Bucket": bucket, "Key": "k"})
            self.base = signed.partition("?")[0].removesuffix("k")
            self.ssl = ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE"))

    def __call__(self, body: bytes, wanted: dict[str, str]) -> bool:
        """Whether S3 has stored the body; `wanted` is what put_object takes."""
        if not self.useful:
            return False
        headers = {self.HEADERS[name]: value for name, value in wanted.items() if name in self.HEADERS}
        request = AWSRequest("PUT", self.base + quote(wanted["Key"], safe="/~"), headers=headers, data=body)
        S3SigV4Auth(self.credentials.get_frozen_credentials(), "s3", self.region).add_auth(request)
        connection = self.connection()
        try:
            connection.request("PUT", urlsplit(request.url).path, body, dict(request.headers.items()))
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            return False
        if response.status != 200 and response.status not in self.MAY_PASS:
            self.useful = False
        return response.status == 200

    def connection(self) -> http.client.HTTPConnection:
        """This thread's own; it opens itself anew when it was closed."""
        if not hasattr(self.thread, "connection"):
            url = urlsplit(self.base)
            secure = {"context": self.ssl} if url.scheme == "https" else {}
            kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
            self.thread.connection = kind(url.netloc, timeout=CLIENT["read_timeout"], **secure)
        return self.thread.connection


def condition(action: Action) -> dict[str, str]:
    """What must still be true for the write to be done."""
    return {"IfMatch": f'"{action.etag}"'} if action.verb == "changed" else {"IfNoneMatch": "*"}


def code(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")


DENIED = (
    "access denied to s3://{place}; the keys need s3:ListBucket, s3:ListBucketMultipartUploads, s3:GetObject,"
    " s3:PutObject and s3:AbortMultipartUpload there"
)
BAD_KEY = (
    "the AWS keys are not accepted ({code}); mend [AWS CREDS] in dl.cfg, or leave them blank for the default chain"
)
OLD_KEY = "the AWS session has expired; log in again (aws sso login, or new temporary keys)"
ELSEWHERE = "bucket {bucket} is in another region{region}; set [LAKE] REGION to it in dl.cfg"
REMEDIES = {
    "NoSuchBucket": "bucket {bucket} does not exist; mend the address, or make it with --create-bucket",
    "AccessDenied": DENIED,
    "403": DENIED,
    "InvalidAccessKeyId": BAD_KEY,
    "SignatureDoesNotMatch": BAD_KEY,
    "InvalidToken": BAD_KEY,
    "ExpiredToken": OLD_KEY,
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it, for S3 refuses requests signed 15 minutes off",
    "PermanentRedirect": ELSEWHERE,
    "AuthorizationHeaderMalformed": ELSEWHERE,
    "IllegalLocationConstraintException": ELSEWHERE,
    "301": ELSEWHERE,
    "BucketAlreadyExists": "bucket {bucket} belongs to someone else; choose another name, unique in the world",
    "InvalidBucketName": "{bucket} cannot be a bucket's name; mend the address",
}


def hopeless(error: ClientError | BotoCoreError) -> bool:
    """Whether every other file would fail with it too."""
    if isinstance(error, ClientError):
        return code(error) in REMEDIES
    return isinstance(error, (ConnectionError, NoCredentialsError, PartialCredentialsError))


def explained(error: ClientError | BotoCoreError, lake: Lake) -> str:
    """What went wrong on S3's side and what to do, in one line."""
    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return "no AWS credentials; fill in [AWS CREDS] in dl.cfg, or set AWS_PROFILE, or run aws configure"
    if isinstance(error, (ConnectionError, HTTPClientError)):
        return f"{error}; is the network up, and [LAKE] ENDPOINT in dl.cfg right?".replace("\n", " ")
    if isinstance(error, BotoCoreError):
        return str(error).replace("\n", " ")
    told = error.response.get("Error", {})
    answer = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region = told.get("Region") or answer.get("x-amz-bucket-region")
    facts = {"bucket": lake.bucket, "place": f"{lake.bucket}/{lake.prefix}", "code": code(error)}
    remedy = REMEDIES.get(code(error), f"S3 refuses {error.operation_name}: {code(error)}: {told.get('Message', '')}")
    return remedy.format(**facts, region=f", {region}" if region else "") if code(error) in REMEDIES else remedy


# ------------------------------------------------------------------------------------------------------------------
# Commands
# ------------------------------------------------------------------------------------------------------------------


def prepared(lake: Lake, source: str, pack: bool, empty: bool) -> tuple[list[Action], list[str]]:
    """The plan, and the troubles with what cannot be part of it. `empty`: the bucket is yet to be made."""
    with ThreadPoolExecutor(THREADS) as pool, ThreadPoolExecutor(PART_THREADS) as part_pool:
        listing = pool.submit(dict if empty else lake.listing)
        found, troubles = scanned(source, lake.prefix)
        files = packed(found, lake.prefix) if pack else found
        stored = listing.result()
        warn_of_doubles(found, files, stored)
        doubtful = [file for file in files if undecided(file, stored.get(file.key))]
        same, unread, told = compared(lake, doubtful, stored, pool, part_pool)
    files = [file for file in files if file.key not in unread]
    sent = [file for file in files if file.key not in same]
    return plan(files, stored, same, [] if empty else lake.left_open(files, sent)), troubles + told


def compared(
    lake: Lake,
    files: list[File],
    stored: dict[str, Stored],
    pool: ThreadPoolExecutor,
    part_pool: ThreadPoolExecutor,
) -> tuple[set[str], set[str], list[str]]:
    """The keys of the files whose content is stored already, of those that cannot be read, and the troubles met."""
    troubles: list[str] = []

    def same(file: File, each: Callable[..., Iterable[int]] = map) -> bool | None:
        with noted(file.paths[0], troubles):
            return lake.same(file, stored[file.key], each)
        return None

    small = [file for file in files if not file.large]
    large = [file for file in files if file.large]  # one after the other, each with its parts in parallel
    batches = [
        small[start : start + 200] for start in range(0, len(small), 200)
    ]  # a task each would cost more than the file
    answers = [answer for batch in pool.map(lambda batch: list(map(same, batch)), batches) for answer in batch]
    answers += [same(file, part_pool.map) for file in large]
    answered = list(zip((file.key for file in small + large), answers, strict=True))
    return {key for key, answer in answered if answer}, {key for key, answer in answered if answer is None}, troubles


def warn_of_doubles(found: list[File], files: list[File], stored: dict[str, Stored]) -> None:
    """Packed and plain side by side would deliver every record twice."""
    keys = {file.key for file in files}
    plain = sum(file.key in stored for file in found if file.key not in keys)
    packs = sum(key.endswith("/" + PACK) and key not in keys for key in stored)
    for count, kind in ((plain, "plain"), (packs, "packed")):
        if count:
            log.warning(
                "the address holds %d %s objects with the same records; the job counts each once, but reads it twice:"
                " keep one kind and remove the other",
                count,
                kind,
            )


def carry_out(lake: Lake, actions: list[Action], counts: Counter[str]) -> None:
    """Does the plan, and counts what was sent and what failed."""
    for action in actions:
        if action.verb == "abort":
            lake.abort(action.key, action.upload_id)
    sends = [action for action in actions if action.verb in ("new", "changed")]
    total = sum(action.file.size for action in sends)
    with tqdm(total=total, unit="B", unit_scale=True, disable=None) as bar:
        for size, trouble in sent(lake, sends, bar.update):
            counts.update({"failed": 1} if trouble else {"sent": 1, "bytes": size})
            bar.set_postfix_str(f"{counts['sent']:,} of {len(sends):,} files", refresh=False)
            if trouble:
                bar.clear()
                log.error("%s", trouble)


def sent(lake: Lake, actions: list[Action], progress: Callable[[int], Any]) -> Iterator[tuple[int, str]]:
    """Sends the files; of each the bytes, and the trouble or ""."""

    def attempt(send: Callable[[], int], action: Action) -> tuple[int, str]:
        try:
            return send(), ""
        except Trouble as trouble:
            return 0, str(trouble)
        except (ClientError, BotoCoreError) as error:
            if hopeless(error):
                raise JobError(explained(error, lake)) from None
            return 0, str(Trouble(action.file.paths[0], explained(error, lake)))

    pool, part_pool = ThreadPoolExecutor(THREADS), ThreadPoolExecutor(PART_THREADS)
    try:
        small = [action for action in actions if not action.file.large]
        for future in as_completed([pool.submit(attempt, partial(lake.put, action), action) for action in small]):
            progress(future.result()[0])
            yield future.result()
        for action in actions:
            if action.file.large:  # one after the other, each with its parts in parallel
                yield attempt(partial(lake.put_in_parts, action, part_pool, progress), action)
    finally:
        pool.shutdown(cancel_futures=True)
        part_pool.shutdown(cancel_futures=True)


def line(action: Action, lake: Lake) -> str:
    """An action of the plan, to be read."""
    place = f"s3://{lake.bucket}/{action.key}"
    if action.verb == "abort":
        return f"abort    an upload left open of {place}"
    more = f" and {len(action.file.paths) - 1:,} more" if len(action.file.paths) > 1 else ""
    return f"{action.verb:8} {shown(action.file.paths[0])}{more} -> {place} ({action.file.size:,} bytes)"


def run(lake: Lake, options: argparse.Namespace) -> int:
    """The whole upload; the exit code."""
    started, counts = time.monotonic(), Counter()
    empty = options.create_bucket and not lake.bucket_exists()
    if empty and not options.dry_run:
        lake.create_bucket()
    actions, troubles = prepared(lake, options.source, options.pack, empty)
    counts["unchanged"] = sum(action.verb == "unchanged" for action in actions)
    counts["planned"] = sum(action.verb in ("new", "changed") for action in actions)
    counts["failed"] = len(troubles)
    for trouble in troubles:
        log.error("%s", trouble)
    try:
        if options.dry_run:
            print(*(line(action, lake) + "\n" for action in actions if action.verb != "unchanged"), sep="", end="")
        else:
            carry_out(lake, actions, counts)
    finally:
        report = ", ".join(f"{name} {counts[name]:,}" for name in ("planned", "sent", "unchanged", "failed", "bytes"))
        print(f"{report}, seconds {time.monotonic() - started:.1f}")
    return 1 if counts["failed"] else 0


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="upload.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE", help="the local directory")
    parser.add_argument("address", metavar="ADDRESS", nargs="?", help="s3://BUCKET/PREFIX (default: [LAKE] INPUT)")
    parser.add_argument("--config", default="dl.cfg", metavar="FILE", help="the configuration (default: dl.cfg)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and change nothing")
    parser.add_argument("--pack", action="store_true", help="join small JSON files into one object a folder")
    parser.add_argument("--create-bucket", action="store_true", help="make the bucket, private, if it does not exist")
    return parser.parse_args(argv)


def checked(options: argparse.Namespace) -> Settings:
    """The settings, with the address as their input. UsageError if there is nothing to copy, or nowhere to put it."""
    settings = read_settings(options.config, input=options.address)
    if not os.path.isdir(options.source):
        raise UsageError(f"{options.source} is no directory; name the one that holds song_data and log_data")
    if not on_s3(settings.input):
        raise UsageError(f"{settings.input} is no address on S3; give s3://BUCKET/PREFIX, here or as [LAKE] INPUT")
    return settings


def main(argv: list[str] | None = None) -> int:
    """Runs the upload; the exit code tells how it went."""
    options = arguments(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    lake = None
    try:
        lake = Lake(checked(options))
        return run(lake, options)
    except JobError as error:
        log.error("%s", error)
        return error.exit_code
    except (ClientError, BotoCoreError) as error:
        log.error("%s", explained(error, lake))
        return 1
    except KeyboardInterrupt:
        log.error("interrupted; run it again, it goes on from here")
        return 130


if __name__ == "__main__":
    sys.exit(main())
