"""An HTTP proxy on loopback between an S3 client and an S3 server: it counts, delays and breaks requests.

    with fault_proxy(server.endpoint, faults=[Fault("503", fraction=0.1)]) as proxy:
        ...                      # a client that talks to proxy.endpoint
        proxy.counts()           # {"LIST": 1, "PUT": 12, ...}

The bytes pass as they are, the Host header too: S3's signature covers it.
"""

from __future__ import annotations

import random
import re
import select
import socket
import socketserver
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import BinaryIO
from urllib.parse import parse_qs, urlsplit

PIECE = 64 * 1024
REFUSAL = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>by the fault proxy</Message></Error>'


@dataclass(eq=False)
class Fault:
    """What goes wrong, and with which requests.

    kind is one of
        "503"              the answer is an error; "403 AccessDenied" also says with which of S3's codes
        "reset"            the connection breaks before the server gets the request
        "silence"          the server does not get the request, and the client waits for an answer in vain
        "lost"             the server does what the request says, and its answer never arrives
    """

    kind: str
    fraction: float = 1.0
    first: int | None = None  # only the first so many that match; None: all
    operation: str = ".*"  # regular expressions, for the whole name and for a part of the path
    path: str = ""
    header: str = ""  # a header that the request has, in lower case
    lasting: bool = False  # all later requests fail in the same way


@dataclass(frozen=True)
class Request:
    """One request as it came by. status is 0 when no answer was let through."""

    operation: str
    method: str
    path: str
    headers: dict[str, str] = field(repr=False)  # names in lower case
    status: int
    fault: str = ""


def operation(method: str, path: str, headers: dict[str, str]) -> str:
    """What S3 calls the request.

    >>> operation("PUT", "/lake/raw/a.json?partNumber=1&uploadId=x", {})
    'UploadPart'
    """
    url = urlsplit(path)
    query = parse_qs(url.query, keep_blank_values=True)
    of_bucket = "/" not in url.path.strip("/")
    copy = "x-amz-copy-source" in headers
    if method == "GET":
        if "uploads" in query:
            return "ListMPU"
        if "uploadId" in query:
            return "ListParts"
        if url.path == "/":
            return "ListBuckets"
        if of_bucket:
            return "LIST" if "list-type" in query or not query or "prefix" in query else "GetBucket"
        return "GET"
    if method == "HEAD":
        return "HeadBucket" if of_bucket else "HEAD"
    if method == "PUT":
        if "partNumber" in query:
            return "UploadPartCopy" if copy else "UploadPart"
        if of_bucket:
            return "PutBucket" if query else "CreateBucket"
        return "COPY" if copy else "PUT"
    if method == "POST":
        return "DeleteObjects" if "delete" in query else "CreateMPU" if "uploads" in query else "CompleteMPU"
    return "AbortMPU" if "uploadId" in query else "DELETE"


class Broken(Exception):
    """The peer hung up."""


def head_of(stream: BinaryIO) -> tuple[bytes, list[bytes], dict[str, str]]:
    """First line, header lines, and the headers by their names in lower case."""
    first = stream.readline()
    if not first:
        raise Broken
    lines = []
    while (line := stream.readline()) not in (b"\r\n", b"\n"):
        if not line:
            raise Broken
        lines.append(line)
    pairs = (line.decode("latin-1").partition(":") for line in lines)
    return first, lines, {name.lower(): value.strip() for name, _, value in pairs}


def pieces(stream: BinaryIO, headers: dict[str, str], until_closed: bool = False) -> Iterator[bytes]:
    """The body as it stands on the wire, chunk marks and all."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        size = -1
        while size != 0:
            mark = stream.readline()
            size = int(mark.split(b";")[0] or b"0", 16)
            yield mark
            if size:
                yield stream.read(size + 2)
        while (line := stream.readline()) not in (b"\r\n", b"\n", b""):
            yield line
        yield b"\r\n"
    elif "content-length" in headers:
        left = int(headers["content-length"])
        while left:
            piece = stream.read1(min(left, PIECE))  # type: ignore[attr-defined]
            if not piece:
                raise Broken
            left -= len(piece)
            yield piece
    elif until_closed:
        while piece := stream.read(PIECE):
            yield piece


class Handler(socketserver.StreamRequestHandler):
    """One client connection, and the one connection to the server that goes with it."""

    disable_nagle_algorithm = True
    server: FaultProxy
    upstream: socket.socket | None = None

    def handle(self) -> None:
        try:
            while self.exchange():
                pass
        except (Broken, OSError, ValueError):
            pass
        finally:
            if self.upstream:
                self.upstream.close()

    def exchange(self) -> bool:
        """Passes one request and its answer; whether the connection stays open."""
        first, lines, headers = head_of(self.rfile)
        method, path, _ = first.decode("latin-1").split(" ", 2)
        name = operation(method, path, headers)
        kind = self.server.fault_for(name, path, headers)
        if self.server.latency:
            time.sleep(self.server.latency)
        if kind == "reset":
            self.server.record(Request(name, method, path, headers, 0, kind))
            return self.hang_up()
        if kind == "silence":
            self.server.record(Request(name, method, path, headers, 0, kind))
            return self.wait_in_silence()
        if headers.get("expect", "").lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if kind[:3].isdigit():
            for _ in pieces(self.rfile, headers):
                pass
            self.server.record(Request(name, method, path, headers, int(kind[:3]), kind))
            return self.refuse(method, kind)
        self.send_on(first, lines, headers)
        return self.answer(Request(name, method, path, headers, 0, kind))

    def send_on(self, first: bytes, lines: list[bytes], headers: dict[str, str]) -> None:
        upstream = self.connection_upstream()
        kept = [line for line in lines if not line.lower().startswith((b"expect:", b"connection:"))]
        head = first + b"".join(kept) + b"\r\n"
        for piece in pieces(self.rfile, headers):
            if head:
                head, piece = b"", head + piece  # one write for a small request
            upstream.sendall(piece)
        if head:
            upstream.sendall(head)

    def connection_upstream(self) -> socket.socket:
        """The open connection, or a new one when the server has closed it meanwhile."""
        if self.upstream and select.select([self.upstream], [], [], 0)[0]:
            self.upstream.close()
            self.upstream = None
        if not self.upstream:
            self.upstream = socket.create_connection(self.server.target, timeout=120)
            self.upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.from_upstream = self.upstream.makefile("rb")
        return self.upstream

    def answer(self, request: Request) -> bool:
        first, lines, headers = head_of(self.from_upstream)
        while first.split()[1].startswith(b"1"):
            first, lines, headers = head_of(self.from_upstream)
        status = int(first.split()[1])
        bare = request.method == "HEAD" or status in (204, 304)
        sized = bare or "content-length" in headers or "transfer-encoding" in headers
        body = iter(()) if bare else pieces(self.from_upstream, headers, until_closed=True)
        lost = request.fault == "lost"
        passed = 0 if lost else status
        self.server.record(
            Request(request.operation, request.method, request.path, request.headers, passed, request.fault)
        )
        if lost:
            return self.hang_up()
        head = first + b"".join(lines) + b"\r\n"
        for piece in body:
            head, piece = b"", head + piece
            self.wfile.write(piece)
        if head:
            self.wfile.write(head)
        if not sized or headers.get("connection", "").lower() == "close":
            self.upstream.close()
            self.upstream = None
        return sized and request.headers.get("connection", "").lower() != "close"

    def refuse(self, method: str, kind: str) -> bool:
        status, _, code = kind.partition(" ")
        body = REFUSAL.format(code or "SlowDown")
        head = f"HTTP/1.1 {status} Refused\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
        self.wfile.write((head + ("" if method == "HEAD" else body)).encode())
        return True

    def wait_in_silence(self) -> bool:
        """Until the client gives up."""
        while self.connection.recv(PIECE):
            pass
        return False

    def hang_up(self) -> bool:
        """A reset, not an orderly end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        return False

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()


class FaultProxy(socketserver.ThreadingTCPServer):
    """The proxy itself. Its fields may be changed while it runs."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, target: str, faults: Sequence[Fault] = (), latency: float = 0.0, seed: int = 0) -> None:
        url = urlsplit(target)
        self.target = (url.hostname, url.port)
        self.faults = list(faults)
        self.latency = latency  # seconds before each request
        self.down = False  # True: every request is met with a reset
        self.outage = ""  # the kind of fault that every request meets from now on
        self.requests: list[Request] = []
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fault_for(self, name: str, path: str, headers: dict[str, str]) -> str:
        """The kind of fault that meets this request, or ""."""
        if self.down or self.outage:
            return self.outage or "reset"
        with self._lock:
            for fault in self.faults:
                if fault.first == 0 or not re.fullmatch(fault.operation, name) or not re.search(fault.path, path):
                    continue
                if fault.header and fault.header not in headers:
                    continue
                if fault.fraction < 1 and self._random.random() >= fault.fraction:
                    continue
                if fault.first is not None:
                    fault.first -= 1
                self.outage = fault.kind if fault.lasting else ""
                return fault.kind
        return ""

    def record(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def forget(self) -> None:
        """Starts to count from zero."""
        with self._lock:
            self.requests.clear()

    def counts(self) -> Counter[str]:
        """How many requests came by, for each operation."""
        with self._lock:
            return Counter(request.operation for request in self.requests)

    def injected(self) -> Counter[str]:
        """How many faults were injected, for each kind."""
        with self._lock:
            return Counter(request.fault for request in self.requests if request.fault)

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@contextmanager
def fault_proxy(target: str, faults: Sequence[Fault] = (), latency: float = 0.0, seed: int = 0) -> Iterator[FaultProxy]:
    """A running proxy before the server at `target`, such as "http://127.0.0.1:9000"."""
    with FaultProxy(target, faults, latency, seed) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()
