"""The core of upload.py's promises on MinIO: it verifies checksums, conditions on multipart and SSE-KMS, as S3 does."""

from __future__ import annotations

import os

import pytest
from faultproxy import Fault, fault_proxy
from s3 import minio_server, open_uploads
from test_upload import MB, Place, meanwhile, report, small_parts  # noqa: F401 - fixtures

import upload

pytestmark = [pytest.mark.minio, pytest.mark.usefixtures("small_parts")]


@pytest.fixture(scope="module")
def server():
    with minio_server() as running:
        yield running


@pytest.fixture
def place(server, tmp_path):
    with fault_proxy(server.endpoint) as proxy:
        yield Place(server, proxy, tmp_path)


def test_files_small_and_large_arrive_and_an_unchanged_rerun_sends_nothing(place):
    for number in range(1_100):
        place.write(f"song_data/{number % 26}/{number}.json", f"song {number}")
    place.write("large.bin", os.urandom(11 * MB))
    assert place.upload() == 0
    assert place.stored() == place.local()
    assert place.upload() == 0
    assert place.proxy.counts() == {"LIST": 2, "HEAD": 1, "ListMPU": 1}


def test_a_tiny_file_with_any_name_costs_one_request(place):
    for name in ("a b+c.json", "100%.json", "Beyoncé/Déjà #1?.json", "tilde~(x)&=;,@'\"$!*:.json", "雪.json"):
        place.write(name, name)
    assert place.upload() == 0
    assert place.stored() == place.local()
    assert place.proxy.counts() == {"LIST": 1, "ListMPU": 1, "PUT": 5}


def test_a_change_of_content_alone_is_sent_whole_or_in_parts(place):
    place.write("small.json", "old")
    place.write("large.bin", b"a" * 6 * MB)
    place.upload()
    for name, content in (("small.json", b"new"), ("large.bin", b"b" * 6 * MB)):
        os.utime(place.write(name, content), (0, 0))
    assert place.upload() == 0
    assert place.stored() == place.local()


def test_under_kms_where_no_etag_is_an_md5_a_head_each_tells_what_is_unchanged(place):
    place.configure(SSE="aws:kms", KMS_KEY_ID="lake-key")
    for name in ("a.json", "b.json"):
        place.write(name, f"content of {name}")
    place.write("large.bin", b"a" * 6 * MB)
    assert place.upload() == 0
    head = place.client.head_object(Bucket=place.bucket, Key="raw/a.json")
    assert head["ServerSideEncryption"] == "aws:kms"
    assert place.upload() == 0
    assert place.proxy.counts() == {"LIST": 1, "HEAD": 3, "ListMPU": 1}
    place.write("b.json", "CONTENT of b.json")
    assert place.upload() == 0
    assert place.written() == {f"/{place.bucket}/raw/b.json"}
    assert place.stored() == place.local()


@pytest.mark.parametrize("before", [None, "one"])
@pytest.mark.parametrize("size", [3, 6 * MB])
def test_a_lost_race_is_reported_and_the_other_ones_object_stays(place, meanwhile, caplog, before, size):  # noqa: F811
    place.write("a.json", b"x" * size)
    if before:
        place.client.put_object(Bucket=place.bucket, Key="raw/a.json", Body=b"one")
    meanwhile(lambda: place.client.put_object(Bucket=place.bucket, Key="raw/a.json", Body=b"theirs"))
    assert place.upload() == 1
    assert place.stored() == {"a.json": b"theirs"}
    assert "a.json: someone else wrote" in caplog.text
    assert not open_uploads(place.client, place.bucket, "raw/a.json")


@pytest.mark.parametrize("size", [3, 6 * MB])
def test_bytes_that_are_not_those_of_the_checksum_are_refused(place, monkeypatch, caplog, capsys, size):
    place.write("a.json", b"x" * size)
    monkeypatch.setattr(upload, "crc_text", lambda crc: "AAAAAA==")
    assert place.upload() == 1
    assert not place.stored()
    assert "a.json" in caplog.text
    assert report(capsys)["failed"] == 1


def test_an_upload_left_open_is_removed_by_the_next_run(place):
    place.write("large.bin", os.urandom(6 * MB))
    kind = {"ChecksumAlgorithm": "CRC32", "ChecksumType": "FULL_OBJECT"}
    place.client.create_multipart_upload(Bucket=place.bucket, Key="raw/large.bin", **kind)
    assert place.upload() == 0
    assert place.stored() == place.local()
    assert not open_uploads(place.client, place.bucket, "raw/large.bin")


def test_throttling_and_resets_at_a_tenth_of_all_requests_are_survived(place):
    for number in range(80):
        place.write(f"song_data/{number}.json", f"song {number}")
    place.write("large.bin", os.urandom(11 * MB))
    place.proxy.faults = [Fault("503", 0.05), Fault("reset", 0.04), Fault("lost", 0.01)]
    assert place.upload() == 0
    assert sum(place.proxy.injected().values()) >= 5
    assert place.stored() == place.local()


def test_packs_are_made_in_a_bucket_of_our_own(server, tmp_path):
    with fault_proxy(server.endpoint) as proxy:
        place = Place(server, proxy, tmp_path, bucket=False)
        for number in range(50):
            place.write(f"song_data/A/{number}.json", f'{{"song_id": "{number}"}}')
        assert place.upload("--pack", "--create-bucket") == 0
        assert len(place.stored()["song_data/A/packed.json"].splitlines()) == 50
        assert place.upload("--pack", "--create-bucket") == 0
        assert not place.written()
