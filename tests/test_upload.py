"""What upload.py promises, tried on a real S3 server (moto's), seen through a counting and faulty proxy."""

from __future__ import annotations

import base64
import fcntl
import itertools
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import closing, suppress
from functools import cache
from itertools import count
from pathlib import Path

import pytest
from faultproxy import Fault, FaultProxy, fault_proxy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from s3 import Server, moto_server, objects, open_uploads

import etl
import upload

MB = 2**20
SCRIPT = Path(upload.__file__)
NUMBERS = count()


@cache
def client(server: Server):
    return server.client()


class Place:
    """A local directory, a bucket of its own, and the proxy between them."""

    def __init__(self, server: Server, proxy: FaultProxy, folder: Path, bucket: bool = True) -> None:
        self.server, self.proxy, self.folder = server, proxy, folder
        self.bucket = f"lake-{next(NUMBERS)}"
        self.client = client(server)
        self.source = folder / "source"
        self.source.mkdir(exist_ok=True)
        if bucket:
            self.client.create_bucket(Bucket=self.bucket)
        self.configure()

    def configure(self, **lake: str) -> None:
        self.config = self.server.behind(self.proxy.endpoint).dl_cfg(
            self.folder / f"{self.bucket}.cfg", f"s3://{self.bucket}/raw", **lake
        )

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def put(self, name: str, content: str | bytes) -> None:
        """Stores an object as someone else."""
        self.client.put_object(Bucket=self.bucket, Key=f"raw/{name}", Body=content)

    def arguments(self, *more: str) -> list[str]:
        return [str(self.source), *more, "--config", str(self.config)]

    def upload(self, *more: str) -> int:
        self.proxy.forget()
        return upload.main(self.arguments(*more))

    def process(self, *more: str, **options) -> subprocess.Popen[str]:
        self.proxy.forget()
        command = [sys.executable, str(SCRIPT), *self.arguments(*more)]
        return subprocess.Popen(command, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}, text=True)

    def stored(self) -> dict[str, bytes]:
        return {key.removeprefix("raw/"): body for key, body in objects(self.client, self.bucket).items()}

    def local(self) -> dict[str, bytes]:
        files = (path for path in self.source.rglob("*") if path.is_file())
        return {path.relative_to(self.source).as_posix(): path.read_bytes() for path in files}

    def written(self) -> set[str]:
        """The keys that the last run wrote or tried to write."""
        return {r.path.split("?")[0] for r in self.proxy.requests if r.operation in ("PUT", "CreateMPU")}


@pytest.fixture(scope="module")
def server():
    with moto_server() as running:
        yield running


@pytest.fixture
def place(server, tmp_path):
    with fault_proxy(server.endpoint) as proxy:
        yield Place(server, proxy, tmp_path)


@pytest.fixture
def midway(monkeypatch) -> Callable:
    """Makes something happen after both sides are listed and before anything is sent."""

    def arrange(act: Callable) -> None:
        send_all = upload.Upload.send_all

        def acted(*arguments):
            act()
            send_all(*arguments)

        monkeypatch.setattr(upload.Upload, "send_all", acted)

    return arrange


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(upload, "PART", 5 * MB)  # the least that S3 takes


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setitem(upload.CLIENT, "retries", {"mode": "standard", "total_max_attempts": 2})


def report(capsys) -> dict[str, float]:
    """The figures of the last line that was printed."""
    last = capsys.readouterr().out.splitlines()[-1]
    return {name: float(figure.replace(",", "")) for name, figure in re.findall(r"(\w+) ([\d,.]+)(?:, |$)", last)}


# What is sent


def test_every_file_is_copied_to_the_same_place_below_the_address(place, capsys):
    place.write("song_data/A/A/B/TRAAB.json", '{"song_id": "S1"}')
    place.write("log_data/2018/11/events.json", '{"page": "Home"}\n' * 3)
    place.write(".hidden", "too")
    place.write("empty.json", "")
    assert place.upload() == 0
    assert place.stored() == place.local()
    size = sum(map(len, place.local().values()))
    figures = report(capsys)
    assert figures.pop("seconds") < 60
    assert figures == {"new": 4, "changed": 0, "unchanged": 0, "failed": 0, "bytes": size}


def test_names_with_any_character_arrive_as_they_are(place):
    for name in ("a b+c", "100%", "Beyoncé/Déjà #1?", "e\u0301", "tilde~(x)&=;,@'\"\\", "雪", "a//./b", " "):
        place.write(f"{name}.json", name)
    assert place.upload() == 0
    assert place.stored() == place.local()
    assert place.upload() == 0
    assert not place.written()


def test_a_rerun_that_finds_nothing_new_costs_one_list_and_no_put_and_no_head(place, capsys):
    for number in range(30):
        place.write(f"song_data/{number}.json", str(number))
    assert place.upload() == 0
    assert place.upload() == 0
    assert place.proxy.counts() == {"LIST": 1}
    assert report(capsys)["unchanged"] == 30


def test_same_size_and_older_time_but_other_content_is_sent(place):
    path = place.write("a.json", "old content")
    place.upload()
    path.write_text("new content")
    os.utime(path, (0, 0))
    assert place.upload() == 0
    assert place.stored() == {"a.json": b"new content"}


def test_a_new_time_alone_sends_nothing(place):
    path = place.write("a.json", "content")
    place.upload()
    os.utime(path)
    assert place.upload() == 0
    assert not place.written()


@pytest.mark.usefixtures("small_parts")
def test_a_large_file_goes_in_parts_with_a_checksum_on_each_and_on_the_whole(place):
    body = os.urandom(11 * MB)
    place.write("large.bin", body)
    assert place.upload() == 0
    assert place.proxy.counts() == {"LIST": 1, "CreateMPU": 1, "UploadPart": 3, "CompleteMPU": 1}
    parts = [request for request in place.proxy.requests if request.operation == "UploadPart"]
    assert all("x-amz-checksum-crc32" in part.headers for part in parts)
    complete = next(request for request in place.proxy.requests if request.operation == "CompleteMPU")
    assert base64.b64decode(complete.headers["x-amz-checksum-crc32"]) == zlib.crc32(body).to_bytes(4, "big")
    assert complete.headers["x-amz-checksum-type"] == "FULL_OBJECT"
    assert complete.headers["if-none-match"] == "*"
    assert place.stored() == {"large.bin": body}


@pytest.mark.usefixtures("small_parts")
def test_a_large_file_is_compared_by_one_head_and_sent_when_its_content_differs(place):
    path = place.write("large.bin", b"a" * 11 * MB)
    place.upload()
    assert place.upload() == 0
    assert place.proxy.counts() == {"LIST": 1, "HEAD": 1}
    path.write_bytes(b"a" * 10 * MB + b"b" * MB)
    assert place.upload() == 0
    assert place.stored() == {"large.bin": path.read_bytes()}


@pytest.mark.usefixtures("small_parts")
def test_an_object_without_a_checksum_of_the_whole_is_sent_once_more_and_then_known(place):
    path = place.write("large.bin", b"a" * 6 * MB)
    opened = place.client.create_multipart_upload(Bucket=place.bucket, Key="raw/large.bin", ChecksumAlgorithm="CRC32")
    where = {"Bucket": place.bucket, "Key": "raw/large.bin", "UploadId": opened["UploadId"]}
    etag = place.client.upload_part(**where, PartNumber=1, Body=path.read_bytes())["ETag"]
    place.client.complete_multipart_upload(**where, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]})
    assert place.upload() == 0
    assert place.written()
    assert place.upload() == 0
    assert not place.written()


STATES = st.dictionaries(
    st.sampled_from(["a.json", "b.json", "song_data/c.json", "song_data/d/e.json"]),
    st.sampled_from(["one", "two", "three"]),
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(here=STATES, there=STATES, pack=st.booleans())
def test_a_dry_run_prints_what_the_real_run_does_and_nothing_is_ever_deleted(place, capsys, here, there, pack):
    place = Place(place.server, place.proxy, place.folder)
    for path in list(place.source.rglob("*.json")):
        path.unlink()
    for name, content in here.items():
        place.write(name, content)
    for name, content in there.items():
        place.put(name, content)
    before = place.stored()
    more = ["--pack"] * pack
    capsys.readouterr()

    assert place.upload("--dry-run", *more) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert not set(place.proxy.counts()) - {"LIST", "HEAD"}
    promised = {(line.split()[0], line.split("s3://")[1]) for line in lines}

    assert place.upload(*more) == 0
    puts = [request for request in place.proxy.requests if request.operation == "PUT"]
    done = {("new" if "if-none-match" in put.headers else "changed", put.path.lstrip("/")) for put in puts}
    assert done == promised
    verdicts = [verdict for verdict, _ in done]
    assert last.startswith(f"new {verdicts.count('new')}, changed {verdicts.count('changed')}, ")
    assert before.keys() <= place.stored().keys()
    if not pack:
        assert place.stored() == {name: content.encode() for name, content in {**there, **here}.items()}


# Other writers


# Not a large file that replaces another: moto does not look at IfMatch when an upload is completed. MinIO does.
@pytest.mark.parametrize("before, size", [(None, 3), (None, 6 * MB), ("one", 3)])
@pytest.mark.usefixtures("small_parts")
def test_what_someone_else_has_just_written_is_named_and_stays(place, midway, caplog, capsys, before, size):
    place.write("a.json", b"x" * size)
    place.write("b.json", "goes on")
    if before:
        place.put("a.json", before)
    midway(lambda: place.put("a.json", "theirs"))
    assert place.upload() == 1
    assert place.stored() == {"a.json": b"theirs", "b.json": b"goes on"}
    assert "a.json: someone else wrote" in caplog.text
    assert report(capsys)["failed"] == 1
    assert not open_uploads(place.client, place.bucket)


def test_what_someone_else_has_just_removed_is_named_and_stays_away(place, midway, caplog):
    place.put("a.json", "old")
    place.write("a.json", "newer")
    midway(lambda: place.client.delete_object(Bucket=place.bucket, Key="raw/a.json"))
    assert place.upload() == 1
    assert not place.stored()
    assert "a.json: someone else wrote or removed it" in caplog.text


def test_another_writer_of_the_same_content_is_no_lost_race(place, midway):
    place.write("a.json", "same")
    midway(lambda: place.put("a.json", "same"))
    assert place.upload() == 0


@pytest.mark.parametrize(("operation", "size"), [("PUT", 10), ("CompleteMPU", 6 * MB)])
@pytest.mark.usefixtures("small_parts")
def test_a_write_whose_answer_was_lost_counts_as_done(place, operation, size):
    place.write("a.json", b"x" * size)
    place.proxy.faults = [Fault("lost", operation=operation, first=1)]
    assert place.upload() == 0
    assert place.proxy.injected() == {"lost": 1}
    assert place.stored() == place.local()


def test_every_write_is_conditional_and_carries_a_checksum_also_when_it_is_tried_again(place):
    place.write("old.json", "x")
    place.upload()
    place.write("old.json", "y")
    place.write("new.json", "z")
    place.proxy.faults = [Fault("503", operation="PUT", path=name, first=1) for name in ("old.json", "new.json")]
    place.upload()
    puts = [request for request in place.proxy.requests if request.operation == "PUT"]
    assert all(put.headers["x-amz-checksum-crc32"] for put in puts)
    assert sorted(("if-match" in put.headers, put.headers.get("if-none-match")) for put in puts) == [
        *[(False, "*")] * 2,
        *[(True, None)] * 2,
    ]


# Faults and interruptions


@pytest.mark.usefixtures("small_parts")
def test_throttling_and_resets_at_a_tenth_of_all_requests_are_survived(place, capsys):
    for number in range(80):
        place.write(f"song_data/{number}.json", f"song {number}")
    place.write("large.bin", os.urandom(11 * MB))
    place.proxy.faults = [Fault("503", 0.05), Fault("reset", 0.04), Fault("lost", 0.01)]
    assert place.upload() == 0
    assert sum(place.proxy.injected().values()) >= 5
    assert place.stored() == place.local()
    assert report(capsys)["new"] == 81


def test_more_refusals_in_a_row_than_boto3_bears_by_itself_are_survived(place):
    place.write("a.json", "x")
    place.proxy.faults = [Fault("503", operation="LIST", first=1), Fault("503", operation="PUT", first=3)]
    assert place.upload() == 0
    assert place.proxy.counts()["PUT"] == 4


@pytest.mark.usefixtures("impatient")
def test_a_store_that_stays_down_is_one_line(place, caplog):
    place.write("a.json", "x")
    place.proxy.down = True
    assert place.upload() == 1
    assert len(caplog.messages) == 1
    assert "ENDPOINT" in caplog.text


@pytest.mark.usefixtures("impatient")
def test_an_object_that_the_store_fails_to_take_is_named_and_the_others_go_on(place, caplog, capsys):
    for name in ("a.json", "b.json", "c.json"):
        place.write(name, "x")
    place.proxy.faults = [Fault("503", operation="PUT", path="b.json")]
    assert place.upload() == 1
    assert set(place.stored()) == {"a.json", "c.json"}
    assert f"s3://{place.bucket}/raw/b.json: " in caplog.text
    assert report(capsys)["failed"] == 1


def test_a_refusal_that_would_meet_every_file_ends_the_run_with_one_line(place, midway, caplog):
    for number in range(20):
        place.write(f"{number}.json", "x")
    midway(lambda: place.client.delete_bucket(Bucket=place.bucket))
    assert place.upload() == 1
    assert len(caplog.messages) == 1
    assert "the bucket does not exist" in caplog.text


def test_a_store_without_conditional_writes_gets_nothing_and_is_one_line(place, caplog):
    for number in range(20):
        place.write(f"{number}.json", "x")
    place.proxy.faults = [Fault("501 NotImplemented", operation="PUT")]
    assert place.upload() == 1
    assert not place.stored()
    assert len(caplog.messages) == 1
    assert "conditional writes" in caplog.text


@pytest.mark.parametrize(("signal_sent", "exit_code", "left"), [(signal.SIGKILL, -9, 1), (signal.SIGINT, 130, 0)])
def test_an_interrupted_run_is_finished_by_the_next(place, signal_sent, exit_code, left):
    place.write("large.bin", b"x" * 40 * MB)
    for number in range(40):
        place.write(f"song_data/{number}.json", f"song {number}")
    place.proxy.faults = [Fault("503", operation="UploadPart", path="partNumber=5")]  # no end before the signal
    run = place.process()
    wait_until(lambda: place.proxy.injected()["503"])
    wait_until(lambda: place.proxy.counts()["PUT"] == 40)
    tried = place.proxy.injected()["503"]
    run.send_signal(signal_sent)
    _, said = run.communicate(timeout=60)
    assert run.returncode == exit_code, said
    assert place.proxy.injected()["503"] <= tried + 1, "an interruption ends the retries, too"
    assert "Traceback" not in said
    assert len(open_uploads(place.client, place.bucket)) == left, "only a killed run leaves its upload open"
    place.proxy.faults = []
    assert place.upload() == 0
    assert place.stored() == place.local()
    assert not place.proxy.counts()["PUT"], "what had arrived was not sent again"


def wait_until(true: Callable) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_interruption_does_not_wait_for_the_end_of_a_comparison(place, monkeypatch, caplog):
    place.put("endless.json", "x")
    place.write("endless.json", "x")
    place.write("a.json", "x")
    begun = threading.Event()

    def endless(*_):
        begun.set()
        yield from itertools.repeat(b"x")

    def interrupted(*_):
        assert begun.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr(upload, "pieces_of", endless)
    monkeypatch.setattr(upload.tqdm, "write", interrupted)
    assert place.upload("--dry-run") == 130
    assert "run the same command again" in caplog.text


# Local trouble: named, and the rest goes on


@pytest.fixture
def beside(place, capsys):
    """Runs the upload of a good file beside a bad one."""
    place.write("good.json", "good")
    yield
    assert place.stored() == {"good.json": b"good"}
    assert report(capsys)["failed"] == 1


@pytest.mark.usefixtures("beside")
def test_a_loop_of_links_is_named(place, caplog):
    (place.source / "loop").symlink_to(place.source)
    assert place.upload() == 1
    assert "loop: a symbolic link to a directory above it" in caplog.text


def test_links_that_lead_on_are_followed(place, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.json").write_text("x")
    (place.source / "song_data").symlink_to(tmp_path / "elsewhere")
    (place.source / "again").symlink_to(tmp_path / "elsewhere")
    assert place.upload() == 0
    assert place.stored() == {"song_data/a.json": b"x", "again/a.json": b"x"}


@pytest.mark.usefixtures("beside")
def test_a_link_to_nothing_is_named(place, caplog):
    (place.source / "dangling.json").symlink_to("nowhere")
    assert place.upload() == 1
    assert "dangling.json: " in caplog.text
    assert "No such file" in caplog.text


@pytest.mark.usefixtures("beside")
def test_a_pipe_is_named_and_not_waited_for(place, caplog):
    os.mkfifo(place.source / "pipe.json")
    assert place.upload() == 1
    assert "pipe.json: a device, pipe or socket" in caplog.text


@pytest.mark.usefixtures("beside")
def test_a_name_that_is_not_utf8_is_named(place, caplog):
    with open(os.fsencode(place.source) + b"/\xff.json", "w"):
        pass
    assert place.upload() == 1
    assert r"\udcff.json: the name is not UTF-8" in caplog.text


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("function", ["open", "os.listdir"])
def test_what_cannot_be_read_is_named(place, caplog, monkeypatch, function):
    place.write("my-secret/a.json", "x")
    refuse(monkeypatch, function, "my-secret")
    assert place.upload() == 1
    assert f"{place.source}/my-secret" in caplog.text
    assert "Permission denied" in caplog.text


def refuse(monkeypatch, function: str, part: str) -> None:
    """Has a call fail as it does for someone without the right. Root, who often runs tests, has it."""
    owner, name = (os, "listdir") if function == "os.listdir" else (upload, "open")
    allowed = getattr(owner, name, open)

    def refusing(path, *more):
        if part in str(path):
            raise PermissionError(13, "Permission denied", path)
        return allowed(path, *more)

    monkeypatch.setattr(owner, name, refusing, raising=False)


@pytest.mark.usefixtures("beside", "small_parts")
@pytest.mark.parametrize("size", [1, 6 * MB])
def test_a_file_that_vanishes_is_named(place, caplog, midway, size):
    path = place.write("short-lived.json", b"x" * size)
    midway(path.unlink)
    assert place.upload() == 1
    assert "short-lived.json: " in caplog.text
    assert "No such file" in caplog.text
    assert not open_uploads(place.client, place.bucket)


@pytest.mark.usefixtures("beside", "small_parts")
@pytest.mark.parametrize("size", [1, 6 * MB])
def test_a_file_that_grows_is_named_and_not_sent(place, caplog, midway, size):
    path = place.write("busy.json", b"x" * size)

    def grow():
        with path.open("ab") as file:
            file.write(b"more")

    midway(grow)
    assert place.upload() == 1
    assert "busy.json: changed during the run" in caplog.text
    assert not open_uploads(place.client, place.bucket)


def test_a_file_that_cannot_be_read_for_the_comparison_is_counted_once(place, caplog, capsys, monkeypatch):
    place.write("a.json", "x")
    place.upload()
    refuse(monkeypatch, "open", "a.json")
    assert place.upload() == 1
    assert report(capsys)["failed"] == 1
    assert len(caplog.messages) == 1


def test_a_name_of_two_lines_is_shown_in_one(place, caplog, capsys):
    place.write("two\nlines.json", "x")
    assert place.upload("--dry-run") == 0
    assert capsys.readouterr().out.count("\n") == 2
    os.mkfifo(place.source / "two\nlines")
    assert place.upload() == 1
    assert r"two\nlines: a device" in caplog.text


# The bucket


@pytest.mark.parametrize("region", ["us-east-1", "eu-west-1"])
def test_a_missing_bucket_is_created_when_asked_for_and_only_then(server, tmp_path, region):
    with fault_proxy(server.endpoint) as proxy:
        place = Place(server, proxy, tmp_path, bucket=False)
        place.configure(REGION=region)
        place.write("a.json", "x")
        assert place.upload() == 1
        assert place.upload("--create-bucket", "--dry-run") == 0
        assert place.bucket not in [bucket["Name"] for bucket in place.client.list_buckets()["Buckets"]]
        assert place.upload("--create-bucket") == 0
        assert place.stored() == place.local()
        place.write("b.json", "x")
        assert place.upload("--create-bucket") == 0
        assert place.proxy.counts() == {"LIST": 1, "PUT": 1}
        assert place.stored() == place.local()
        location = place.client.get_bucket_location(Bucket=place.bucket)["LocationConstraint"]
        assert location == (None if region == "us-east-1" else region)


# Packs


def lines(bodies: dict[str, bytes]) -> list[bytes]:
    """What the job reads of these files, if their names are such that it reads them."""
    read = {name: body.removeprefix(b"\xef\xbb\xbf") for name, body in bodies.items() if etl.is_input(name)}
    return sorted(line for body in read.values() for line in body.split(b"\n") if line)


def songs(place: Place, folders: str = "AB", number: int = 10) -> None:
    for folder in folders:
        for each in range(number):
            place.write(f"song_data/{folder}/A/{each}.json", f'{{"song_id": "{folder}{each}"}}')  # no last newline


def test_a_pack_holds_every_record_of_its_files(place):
    songs(place)
    place.write("song_data/A/B/two.json", '\ufeff{"n": 1}\n{"n": 2}\n')
    place.write("song_data/A/B/empty.json", "")
    place.write("song_data/A/B/mark.json", "\ufeff")
    place.write("log_data/2018/11/long.json", b"x" * 70_000)
    place.write("song_data/C/deep.json.gz", b"not to be packed")
    place.write("top.json", "{}")
    assert place.upload("--pack") == 0
    stored = place.stored()
    assert set(stored) == {
        "song_data/A/packed.json",
        "song_data/B/packed.json",
        "log_data/2018/11/long.json",
        "song_data/C/deep.json.gz",
        "top.json",
    }
    assert lines(stored) == lines(place.local())
    assert all(body.endswith(b"}\n") for name, body in stored.items() if name.endswith("packed.json"))


@pytest.mark.parametrize(
    "hidden",
    [
        "song_data/A/.ipynb_checkpoints/a-checkpoint.json",
        "song_data/A/_temporary/0/a.json",
        "song_data/A/._a.json",
        "song_data/A/_a.json",
        "song_data/.A/packed.json",
        "_old/song_data/A/a.json",
    ],
)
def test_a_file_that_the_job_does_not_read_is_in_no_pack_and_is_copied_as_it_is(place, hidden):
    songs(place, "A", 2)
    place.write("song_data/_x=1/a.json", '{"song_id": "a partition, which is read"}')
    place.write(hidden, '{"song_id": "hidden"}')
    assert place.upload("--pack") == 0
    assert set(place.stored()) == {"song_data/A/packed.json", "song_data/_x=1/packed.json", hidden}
    assert place.stored()[hidden] == place.local()[hidden]
    assert lines(place.stored()) == lines(place.local())


def test_packing_again_sends_nothing_and_a_new_file_changes_one_pack(place):
    songs(place, "ABC")
    place.upload("--pack")
    assert place.upload("--pack") == 0
    assert place.proxy.counts() == {"LIST": 1}
    place.write("song_data/B/Z/new.json", '{"song_id": "new"}')
    assert place.upload("--pack") == 0
    assert place.written() == {f"/{place.bucket}/raw/song_data/B/packed.json"}
    assert lines(place.stored()) == lines(place.local())


@pytest.mark.usefixtures("small_parts")
def test_a_large_pack_goes_in_parts_and_a_file_of_its_own_name_is_in_it(place):
    songs(place, "A")
    place.write("song_data/A/packed.json", b'{"n": "large"}\n' * 700_000)
    assert place.upload("--pack") == 0
    assert place.proxy.counts()["UploadPart"] == 3
    assert set(place.stored()) == {"song_data/A/packed.json"}
    assert lines(place.stored()) == lines(place.local())
    assert place.upload("--pack") == 0
    assert not place.written()


def test_a_pack_takes_little_memory_however_large_it_is(tmp_path):
    path = tmp_path / "packed.json"
    path.touch()
    os.truncate(path, 400 * MB)
    facts = path.stat()
    pieces = upload.pieces_of(upload.Local(str(path), facts.st_size, facts.st_mtime_ns), packed=True)
    tracemalloc.start()
    try:
        stream = upload.Stream(pieces, facts.st_size, None)
        assert sum(iter(lambda: len(stream.read(upload.PART)), 0)) == 400 * MB + 1
        assert tracemalloc.get_traced_memory()[1] < 4 * upload.PART
    finally:
        tracemalloc.stop()


def test_a_pack_with_a_file_that_vanishes_is_not_sent_and_the_file_is_named(place, caplog, midway):
    songs(place)
    midway((place.source / "song_data/A/A/7.json").unlink)
    assert place.upload("--pack") == 1
    assert set(place.stored()) == {"song_data/B/packed.json"}
    assert "song_data/A/A/7.json: " in caplog.text


@pytest.mark.parametrize(("first", "second", "number"), [([], ["--pack"], "10"), (["--pack"], [], "1")])
def test_packed_and_plain_side_by_side_is_warned_of(place, caplog, first, second, number):
    songs(place, "A")
    assert place.upload(*first) == 0
    assert not caplog.messages
    assert place.upload(*second) == 0
    assert f"{number} objects hold the same records, packed or plain, such as song_data/A/" in caplog.text


# What the user sees


@pytest.mark.parametrize(
    ("address", "remedy"),
    [
        ("s3://no-such-bucket/raw", "s3://no-such-bucket/raw: the bucket does not exist"),
        ("data", "data: not on S3; give s3://BUCKET/PREFIX"),
        ("s3://", "INPUT = 's3://': give a directory or s3://BUCKET/PREFIX"),
    ],
)
def test_a_wrong_address_is_one_line_with_the_remedy(place, caplog, address, remedy):
    place.write("a.json", "x")
    assert place.upload(address) in (1, 2)
    assert remedy in caplog.text
    assert len(caplog.messages) == 1


def test_a_source_that_is_no_directory_is_wrong_usage(place, caplog):
    assert upload.main(["no-such-directory", "--config", str(place.config)]) == 2
    assert "no-such-directory: not a directory" in caplog.text


def test_no_credentials_is_one_line_with_the_remedy(place, caplog, monkeypatch):
    place.write("a.json", "x")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
        "AWS_CONFIG_FILE": "/nowhere",
    }.items():
        monkeypatch.setenv(name, value)
    place.config.write_text(re.sub("(AWS_.*=).*", r"\1", place.config.read_text()))
    assert place.upload() == 1
    assert len(caplog.messages) == 1
    assert "[AWS CREDS]" in caplog.text


@pytest.mark.usefixtures("impatient")
def test_keys_never_show(place, caplog, capsys):
    place.write("a.json", "x")
    place.upload()
    place.upload("s3://no-such-bucket")
    place.proxy.down = True
    place.upload()
    assert place.server.secret_key not in caplog.text + str(capsys.readouterr())


def test_a_terminal_shows_progress(place):
    place.write("a.json", "x" * 1000)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    with closing(os.fdopen(ours, "rb", buffering=0)) as terminal:
        run = place.process(stderr=theirs)
        os.close(theirs)
        seen = b""
        with suppress(OSError):  # how a terminal ends
            while piece := terminal.read(1000):
                seen += piece
        assert run.wait(60) == 0
        run.stdout.close()
    assert b"100%" in seen
