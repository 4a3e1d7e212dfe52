"""The core of upload.py's promises on MinIO: it verifies checksums and conditions on multipart, as S3 does."""

from __future__ import annotations

import os

import pytest
from faultproxy import fault_proxy
from s3 import minio_server, open_uploads
from test_upload import MB, Place, lines, midway, report, small_parts, songs  # noqa: F401 - fixtures

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


def test_files_small_and_large_arrive_and_a_rerun_sends_nothing(place):
    for number in range(1_100):
        place.write(f"song_data/{number % 26}/{number}.json", f"song {number}")
    place.write("large.bin", os.urandom(11 * MB))
    assert place.upload() == 0
    assert place.stored() == place.local()
    assert place.upload() == 0
    assert place.proxy.counts() == {"LIST": 2, "HEAD": 1}


def test_a_tiny_file_with_any_name_costs_one_request(place):
    names = ("a b+c", "100%", "Beyoncé/Déjà #1?", "e\u0301", "tilde~(x)&=;,@'\"$!*:", "雪", "two\nlines\t", " ")
    for name in names:
        place.write(f"{name}.json", name)
    assert place.upload() == 0
    assert place.stored() == place.local()
    assert place.proxy.counts() == {"LIST": 1, "PUT": len(names)}


def test_a_name_too_long_for_s3_is_named_and_the_others_go_on(place, caplog, capsys):
    place.write("/".join(["n" * 200] * 6), "x")
    place.write("good.json", "x")
    assert place.upload() == 1
    assert set(place.stored()) == {"good.json"}
    assert "nnn: " in caplog.text
    assert report(capsys)["failed"] == 1


def test_a_change_of_content_alone_is_sent_whole_or_in_parts(place):
    place.write("small.json", "old")
    place.write("large.bin", b"a" * 6 * MB)
    place.upload()
    for name, content in (("small.json", b"new"), ("large.bin", b"b" * 6 * MB)):
        os.utime(place.write(name, content), (0, 0))
    assert place.upload() == 0
    assert place.stored() == place.local()


def test_in_a_bucket_with_a_kms_key_where_no_etag_is_an_md5_a_head_each_tells_what_is_unchanged(place):
    default = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": "lake-key"}
    rules = {"Rules": [{"ApplyServerSideEncryptionByDefault": default}]}
    place.client.put_bucket_encryption(Bucket=place.bucket, ServerSideEncryptionConfiguration=rules)
    for name in ("a.json", "b.json"):
        place.write(name, f"content of {name}")
    place.write("large.bin", b"a" * 6 * MB)
    assert place.upload() == 0
    head = place.client.head_object(Bucket=place.bucket, Key="raw/a.json")
    assert head["ServerSideEncryption"] == "aws:kms"
    assert place.upload() == 0
    assert place.proxy.counts() == {"LIST": 1, "HEAD": 3}
    place.write("b.json", "CONTENT of b.json")
    assert place.upload() == 0
    assert place.written() == {f"/{place.bucket}/raw/b.json"}
    assert place.stored() == place.local()


@pytest.mark.parametrize("before", [None, "one"])
@pytest.mark.parametrize("size", [3, 6 * MB])
def test_what_someone_else_has_just_written_is_named_and_stays(place, midway, caplog, before, size):  # noqa: F811
    place.write("a.json", b"x" * size)
    if before:
        place.put("a.json", before)
    midway(lambda: place.put("a.json", "theirs"))
    assert place.upload() == 1
    assert place.stored() == {"a.json": b"theirs"}
    assert "a.json: someone else wrote" in caplog.text
    assert not open_uploads(place.client, place.bucket, "raw/a.json")


@pytest.mark.parametrize("size", [3, 6 * MB])
def test_bytes_that_are_not_those_of_the_checksum_are_refused(place, monkeypatch, caplog, capsys, size):
    place.write("a.json", b"x" * size)
    monkeypatch.setattr(upload, "checksum", lambda crc: "AAAAAA==")
    assert place.upload() == 1
    assert not place.stored()
    assert "a.json: " in caplog.text
    assert report(capsys)["failed"] == 1


@pytest.mark.usefixtures("small_parts")
def test_packs_small_and_large_are_made_in_a_bucket_of_our_own(server, tmp_path):
    with fault_proxy(server.endpoint) as proxy:
        place = Place(server, proxy, tmp_path, bucket=False)
        songs(place)
        place.write("song_data/B/packed.json", b'{"n": "large"}\n' * 700_000)
        assert place.upload("--pack", "--create-bucket") == 0
        assert set(place.stored()) == {"song_data/A/packed.json", "song_data/B/packed.json"}
        assert lines(place.stored()) == lines(place.local())
        assert place.upload("--pack", "--create-bucket") == 0
        assert not place.written()
