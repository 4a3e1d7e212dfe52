"""What upload.py promises, tried on a real S3 server (moto's), seen through a counting and faulty proxy."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from contextlib import suppress
from functools import cache
from itertools import count
from pathlib import Path

import pytest
from botocore.exceptions import ReadTimeoutError
from faultproxy import Fault, FaultProxy, fault_proxy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from s3 import Server, moto_server, objects, open_uploads

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

    def arguments(self, *more: str) -> list[str]:
        return [str(self.source), *more, "--config", str(self.config)]

    def upload(self, *more: str) -> int:
        self.proxy.forget()
        return upload.main(self.arguments(*more))

    def process(self, *more: str) -> subprocess.Popen[str]:
        self.proxy.forget()
        command = [sys.executable, str(SCRIPT), *self.arguments(*more)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def stored(self) -> dict[str, bytes]:
        return {key.removeprefix("raw/"): body for key, body in objects(self.client, self.bucket).items()}

    def local(self) -> dict[str, bytes]:
        files = (path for path in self.source.rglob("*") if path.is_file())
        return {path.relative_to(self.source).as_posix(): path.read_bytes() for path in files}

    def written(self) -> set[str]:
        """The keys that the last run wrote or tried to."""
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
def meanwhile(monkeypatch):
    """Has something happen between the making of the plan and its doing."""

    def arrange(act):
        carry_out = upload.carry_out

        def acted(*arguments):
            act()
            carry_out(*arguments)

        monkeypatch.setattr(upload, "carry_out", acted)

    return arrange


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(upload, "PART", 5 * MB)  # the least that S3 takes


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
    assert figures == {"planned": 4, "sent": 4, "unchanged": 0, "failed": 0, "bytes": size}


def test_names_with_any_character_arrive_as_they_are(place):
    for name in ("a b+c.json", "100%.json", "Beyoncé/Déjà #1?.json", "tilde~(x)&=;,@'\"\\.json", "雪.json", "a//./b"):
        place.write(name, name)
    assert place.upload() == 0
    assert place.stored() == place.local()
    assert place.upload() == 0
    assert not place.written()


def test_an_unchanged_rerun_costs_one_list_and_no_put_and_no_head(place, capsys):
    for number in range(30):
        place.write(f"song_data/{number}.json", str(number))
    assert place.upload() == 0
    assert place.upload() == 0
    assert place.proxy.counts() == {"LIST": 1, "ListMPU": 1}
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
def test_large_files_go_in_parts_with_a_checksum_on_each_and_on_the_whole(place):
    body = os.urandom(11 * MB)
    place.write("large.bin", body)
    assert place.upload() == 0
    assert place.proxy.counts()["UploadPart"] == 3
    assert not place.proxy.counts()["PUT"]
    parts = [request for request in place.proxy.requests if request.operation == "UploadPart"]
    assert all("x-amz-checksum-crc32" in part.headers for part in parts)
    complete = next(request for request in place.proxy.requests if request.operation == "CompleteMPU")
    assert complete.headers["x-amz-checksum-crc32"] == upload.crc_text(zlib.crc32(body))
    assert complete.headers["if-none-match"] == "*"
    assert place.stored() == {"large.bin": body}


@pytest.mark.usefixtures("small_parts")
def test_a_large_file_is_compared_by_one_head_and_sent_when_its_content_differs(place):
    path = place.write("large.bin", b"a" * 11 * MB)
    place.upload()
    assert place.upload() == 0
    assert place.proxy.counts()["HEAD"] == 1
    assert not place.written()
    path.write_bytes(b"a" * 10 * MB + b"b" * MB)
    assert place.upload() == 0
    assert place.stored() == {"large.bin": path.read_bytes()}


@pytest.mark.usefixtures("small_parts")
def test_an_object_without_a_checksum_of_the_whole_is_sent_once_more_and_then_known(place):
    path = place.write("large.bin", b"a" * 6 * MB)
    uploading = place.client.create_multipart_upload(
        Bucket=place.bucket, Key="raw/large.bin", ChecksumAlgorithm="CRC32"
    )["UploadId"]
    where = {"Bucket": place.bucket, "Key": "raw/large.bin", "UploadId": uploading}
    etag = place.client.upload_part(**where, PartNumber=1, Body=path.read_bytes())["ETag"]
    parts = {"Parts": [{"PartNumber": 1, "ETag": etag}]}
    place.client.complete_multipart_upload(**where, MultipartUpload=parts)
    assert place.upload() == 0
    assert place.written()
    assert place.upload() == 0
    assert not place.written()


STATES = st.dictionaries(
    st.sampled_from(["a.json", "b.json", "song_data/c.json", "song_data/d/e.json"]),
    st.sampled_from(["one", "two", "three"]),
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(here=STATES, there=STATES, open_upload=st.booleans())
def test_a_dry_run_prints_what_the_real_run_does_and_nothing_is_ever_deleted(place, capsys, here, there, open_upload):
    place = Place(place.server, place.proxy, place.folder)
    for path in list(place.source.rglob("*.json")):
        path.unlink()
    for name, content in here.items():
        place.write(name, content)
    for name, content in there.items():
        place.client.put_object(Bucket=place.bucket, Key=f"raw/{name}", Body=content.encode())
    if open_upload:
        begin_upload(place, "raw/a.json")
    capsys.readouterr()

    assert place.upload("--dry-run") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert not set(place.proxy.counts()) - {"LIST", "HEAD", "ListMPU"}
    promised = {(line.split()[0], line.split("s3://")[1].split(" ")[0]) for line in lines}

    assert place.upload() == 0
    verbs = {"PUT": lambda r: "new" if "if-none-match" in r.headers else "changed", "AbortMPU": lambda r: "abort"}
    done = {
        (verbs[request.operation](request), request.path.split("?")[0].lstrip("/"))
        for request in place.proxy.requests
        if request.operation in verbs
    }
    assert done == promised
    assert f"planned {sum(verb != 'abort' for verb, _ in done)}, " in last
    assert place.stored() == {name: content.encode() for name, content in {**there, **here}.items()}


def begin_upload(place: Place, key: str, **kind: str) -> str:
    """Opens a multipart upload as this tool does, and leaves it so."""
    kind = kind or {"ChecksumAlgorithm": "CRC32", "ChecksumType": "FULL_OBJECT"}
    return place.client.create_multipart_upload(Bucket=place.bucket, Key=key, **kind)["UploadId"]


# Other writers


# Not a large file that replaces another: moto does not look at IfMatch when an upload is completed. MinIO does.
@pytest.mark.parametrize("before, size", [(None, 3), (None, 6 * MB), ("one", 3)])
@pytest.mark.usefixtures("small_parts")
def test_a_lost_race_is_reported_and_the_other_ones_object_stays(place, meanwhile, caplog, capsys, before, size):
    place.write("a.json", b"x" * size)
    place.write("b.json", "goes on")
    if before:
        place.client.put_object(Bucket=place.bucket, Key="raw/a.json", Body=b"one")
    meanwhile(lambda: place.client.put_object(Bucket=place.bucket, Key="raw/a.json", Body=b"theirs"))
    assert place.upload() == 1
    assert place.stored() == {"a.json": b"theirs", "b.json": b"goes on"}
    assert "a.json: someone else wrote" in caplog.text
    assert report(capsys)["failed"] == 1
    assert not open_uploads(place.client, place.bucket)


def test_another_writer_with_the_same_content_is_no_lost_race(place, meanwhile):
    place.write("a.json", "same")
    meanwhile(lambda: place.client.put_object(Bucket=place.bucket, Key="raw/a.json", Body=b"same"))
    assert place.upload() == 0


@pytest.mark.parametrize(("operation", "size"), [("PUT", 10), ("CompleteMPU", 6 * MB)])
@pytest.mark.usefixtures("small_parts")
def test_a_write_whose_answer_was_lost_counts_as_done(place, operation, size):
    place.write("a.json", b"x" * size)
    place.proxy.faults = [Fault("lost", operation=operation, first=1)]
    assert place.upload() == 0
    assert place.proxy.injected() == {"lost": 1}
    assert place.stored() == place.local()


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
    assert report(capsys)["sent"] == 81


def test_more_refusals_in_a_row_than_boto3_bears_by_itself_are_survived(place):
    place.write("a.json", "x")
    place.proxy.faults = [Fault("503", operation="LIST", first=1), Fault("503", operation="PUT", first=4)]
    assert place.upload() == 0
    assert place.proxy.counts()["PUT"] == 5


def test_a_store_that_stays_down_is_one_line(place, monkeypatch, caplog):
    monkeypatch.setitem(upload.CLIENT, "retries", {"mode": "standard", "total_max_attempts": 2})
    place.write("a.json", "x")
    place.proxy.down = True
    assert place.upload() == 1
    assert len(caplog.messages) == 1
    assert "ENDPOINT" in caplog.text


def test_a_refusal_that_would_meet_every_file_ends_the_run_with_one_line(place, meanwhile, caplog):
    for number in range(20):
        place.write(f"{number}.json", "x")
    meanwhile(lambda: place.client.delete_bucket(Bucket=place.bucket))
    assert place.upload() == 1
    assert [message.split(";")[0] for message in caplog.messages] == [f"bucket {place.bucket} does not exist"]


@pytest.mark.parametrize(("signal_sent", "exit_code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_an_interrupted_run_is_finished_by_the_next_and_leaves_no_open_upload(place, signal_sent, exit_code):
    place.write("large.bin", b"x" * 40 * MB)
    for number in range(40):
        place.write(f"song_data/{number}.json", f"song {number}")
    place.proxy.faults = [Fault("503", operation="CompleteMPU")]  # it cannot get to the end before the signal
    run = place.process()
    wait_until(lambda: place.proxy.counts()["UploadPart"] >= 2)
    assert open_uploads(place.client, place.bucket) == ["raw/large.bin"]
    run.send_signal(signal_sent)
    out, told = run.communicate(timeout=60)
    assert run.returncode == exit_code, told
    place.proxy.faults = []
    assert place.upload() == 0
    assert place.stored() == place.local()
    assert not open_uploads(place.client, place.bucket)
    assert not place.proxy.counts()["PUT"], "what had arrived was not sent again"


def wait_until(true) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_open_uploads_of_other_files_and_other_tools_are_left_alone(place):
    place.write("a.json", "x")
    begin_upload(place, "raw/b.json")
    begin_upload(place, "raw/a.json", ChecksumAlgorithm="CRC64NVME", ChecksumType="FULL_OBJECT")
    begin_upload(place, "raw/a.json")
    assert place.upload() == 0
    assert sorted(open_uploads(place.client, place.bucket)) == ["raw/a.json", "raw/b.json"]
    assert place.proxy.counts()["AbortMPU"] == 1


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
    assert "loop: a symbolic link that leads back" in caplog.text


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
    assert "dangling.json: No such file" in caplog.text


@pytest.mark.usefixtures("beside")
def test_a_pipe_is_named_and_not_waited_for(place, caplog):
    os.mkfifo(place.source / "pipe.json")
    assert place.upload() == 1
    assert "pipe.json: a device, pipe or socket" in caplog.text


@pytest.mark.usefixtures("beside")
def test_a_name_that_is_no_utf8_is_named(place, caplog):
    with open(os.fsencode(place.source) + b"/\xff.json", "w"):
        pass
    assert place.upload() == 1
    assert r"\udcff.json: its name is not UTF-8" in caplog.text


@pytest.mark.usefixtures("beside")
def test_an_unreadable_file_is_named(place, caplog, monkeypatch):
    place.write("secret.json", "x")

    def refusing(path, *more, **options):
        if str(path).endswith("secret.json"):
            raise PermissionError(13, "Permission denied")
        return open(path, *more, **options)

    monkeypatch.setattr(upload, "open", refusing, raising=False)
    assert place.upload() == 1
    assert "secret.json: Permission denied" in caplog.text


@pytest.mark.usefixtures("beside", "small_parts")
@pytest.mark.parametrize("size", [1, 6 * MB])
def test_a_file_that_vanishes_is_named(place, caplog, meanwhile, size):
    path = place.write("short-lived.json", b"x" * size)
    meanwhile(path.unlink)
    assert place.upload() == 1
    assert "short-lived.json: vanished" in caplog.text
    assert not open_uploads(place.client, place.bucket)


@pytest.mark.usefixtures("beside", "small_parts")
@pytest.mark.parametrize("size", [1, 6 * MB])
def test_a_file_that_grows_is_named_and_not_sent(place, caplog, meanwhile, size):
    path = place.write("busy.json", b"x" * size)

    def grow():
        with path.open("ab") as file:
            file.write(b"more")

    meanwhile(grow)
    assert place.upload() == 1
    assert "busy.json: changed while it was read" in caplog.text
    assert not open_uploads(place.client, place.bucket)


def test_a_file_that_cannot_be_read_for_the_comparison_is_counted_once(place, caplog, capsys, monkeypatch):
    place.write("a.json", "x")
    place.upload()

    def refusing(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(upload, "open", refusing, raising=False)
    assert place.upload() == 1
    assert report(capsys)["failed"] == 1
    assert len(caplog.messages) == 1


def test_a_timeout_of_the_network_is_not_taken_for_trouble_with_the_file(place):
    path = str(place.write("a.json", "x"))
    for around in (upload.reading(path), upload.noted(path, [])):
        with pytest.raises(ReadTimeoutError), around:
            raise ReadTimeoutError(endpoint_url="http://store", error="timed out")


# Settings


@pytest.mark.usefixtures("small_parts")
def test_encryption_key_and_bucket_owner_go_with_every_write(place):
    place.configure(SSE="aws:kms", KMS_KEY_ID="key-1", EXPECTED_BUCKET_OWNER="123456789012")
    for number in range(5):
        place.write(f"{number}.json", "x")
    place.write("large.bin", b"x" * 6 * MB)
    place.proxy.faults = [Fault("503", operation="PUT", first=2)]  # so that boto3 sends some
    assert place.upload() == 0
    writes = [request for request in place.proxy.requests if request.operation in ("PUT", "CreateMPU")]
    assert len(writes) == 8
    for write in writes:
        assert write.headers["x-amz-server-side-encryption"] == "aws:kms"
        assert write.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "key-1"
    assert {request.headers["x-amz-expected-bucket-owner"] for request in place.proxy.requests} == {"123456789012"}


def test_every_write_is_conditional_and_carries_a_checksum(place):
    for number in range(3):
        place.write(f"{number}.json", "x")
    place.upload()
    place.write("1.json", "y")
    place.proxy.faults = [Fault("503", operation="PUT", first=1)]
    conditions = Counter()
    place.upload()
    for request in place.proxy.requests:
        if request.operation == "PUT":
            assert request.headers["x-amz-checksum-crc32"]
            conditions["if-match" in request.headers] += 1
    assert conditions == {True: 2}


def test_a_created_bucket_is_private_and_encrypted(server, tmp_path, caplog):
    with fault_proxy(server.endpoint) as proxy:
        place = Place(server, proxy, tmp_path, bucket=False)
        place.configure(SSE="aws:kms", KMS_KEY_ID="key-1")
        place.write("a.json", "x")
        assert place.upload("--create-bucket", "--dry-run") == 0
        assert place.bucket not in [bucket["Name"] for bucket in place.client.list_buckets()["Buckets"]]
        assert place.upload("--create-bucket") == 0
        assert place.stored() == place.local()
        blocked = place.client.get_public_access_block(Bucket=place.bucket)["PublicAccessBlockConfiguration"]
        assert set(blocked.values()) == {True}
        encryption = place.client.get_bucket_encryption(Bucket=place.bucket)["ServerSideEncryptionConfiguration"]
        default = encryption["Rules"][0]["ApplyServerSideEncryptionByDefault"]
        assert default == {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": "key-1"}
        assert place.upload("--create-bucket") == 0
        assert not {"CreateBucket", "PutBucket"} & set(place.proxy.counts())


# Packs


def records(bodies: dict[str, bytes]) -> list[bytes]:
    return sorted(line for body in bodies.values() for line in body.split(b"\n") if line)


def songs(place: Place, folders: str = "AB", number: int = 10) -> None:
    for folder in folders:
        for each in range(number):
            place.write(f"song_data/{folder}/A/{each}.json", f'{{"song_id": "{folder}{each}"}}')  # no last newline


def test_a_pack_holds_every_record_of_its_files(place, capsys):
    songs(place)
    place.write("song_data/A/B/two.json", '\ufeff{"n": 1}\n{"n": 2}\n')
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
    assert all(body.endswith(b"\n") for key, body in stored.items() if key.endswith("packed.json"))
    assert records(stored) == records({key: body.removeprefix(b"\xef\xbb\xbf") for key, body in place.local().items()})


def test_packing_again_sends_nothing_and_a_new_file_changes_one_pack(place):
    songs(place, "ABC")
    place.upload("--pack")
    assert place.upload("--pack") == 0
    assert place.proxy.counts() == {"LIST": 1, "ListMPU": 1}
    place.write("song_data/B/Z/new.json", '{"song_id": "new"}')
    assert place.upload("--pack") == 0
    assert place.written() == {f"/{place.bucket}/raw/song_data/B/packed.json"}
    assert records(place.stored()) == records(place.local())


@pytest.mark.parametrize(("first", "second", "kind"), [([], ["--pack"], "10 plain"), (["--pack"], [], "1 packed")])
def test_packed_and_plain_side_by_side_is_warned_of(place, caplog, first, second, kind):
    songs(place, "A")
    assert place.upload(*first) == 0
    assert not caplog.messages
    assert place.upload(*second) == 0
    assert f"the address holds {kind} objects with the same records" in caplog.text


# Errors: one line with the remedy


@pytest.mark.parametrize(
    ("address", "remedy"),
    [
        ("s3://no-such-bucket/raw", "bucket no-such-bucket does not exist; mend the address, or make it with --create"),
        ("data", "is no address on S3; give s3://BUCKET/PREFIX"),
        ("s3://", "names no bucket"),
    ],
)
def test_a_wrong_address_is_one_line_with_the_remedy(place, caplog, address, remedy):
    place.write("a.json", "x")
    assert place.upload(address) in (1, 2)
    assert remedy in caplog.text
    assert len(caplog.messages) == 1


def test_a_source_that_is_no_directory_is_wrong_usage(place, caplog):
    assert upload.main(["no-such-directory", "--config", str(place.config)]) == 2
    assert "no-such-directory is no directory" in caplog.text


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
    assert caplog.messages == [
        "no AWS credentials; fill in [AWS CREDS] in dl.cfg, or set AWS_PROFILE, or run aws configure"
    ]


@pytest.mark.parametrize("code", sorted(upload.REMEDIES))
def test_every_refusal_is_one_line_that_names_what_to_do(code):
    answer = {"Error": {"Code": code, "Region": "eu-west-1"}, "ResponseMetadata": {"HTTPHeaders": {}}}
    lake = type("Lake", (), {"bucket": "sparkify", "prefix": "raw/"})
    told = upload.explained(upload.ClientError(answer, "PutObject"), lake)
    assert not re.search(r"[{}\n]", told)
    assert ";" in told


def test_keys_never_show(place, caplog, capsys, monkeypatch):
    monkeypatch.setitem(upload.CLIENT, "retries", {"mode": "standard", "total_max_attempts": 1})
    place.write("a.json", "x")
    place.upload()
    place.proxy.down = True
    with suppress(Exception):
        place.upload("s3://no-such-bucket")
    assert place.server.secret_key not in caplog.text + str(capsys.readouterr())


# The arithmetic


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_the_checksum_of_the_whole_follows_from_those_of_the_parts(first, second):
    joined = upload.crc_joined(zlib.crc32(first), zlib.crc32(second), len(second))
    assert joined == zlib.crc32(first + second)


@given(st.integers(min_value=1, max_value=5 * 2**40))
@example(5 * 2**40)
@settings(max_examples=20)
def test_parts_cover_the_file_and_are_never_more_than_s3_takes(size):
    parts = upload.parts_of(size)
    assert len(parts) <= 10_000
    assert sum(length for _, _, length in parts) == size
    assert [start for _, start, _ in parts[1:]] == [start + length for _, start, length in parts[:-1]]
