"""The job without Spark, for the tests of what it publishes: the real etl.run, whose `build` stages small texts.

A file's text is its rows, and a row is the name of the log file that brought it. A run replaces November's plays, adds
a file to users, and leaves October's plays alone. The properties below hold for any lake, as a dict of names and texts.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from botocore.exceptions import ClientError

import etl

NOVEMBER, OCTOBER, USERS = "songplays/year=2018/month=11", "songplays/year=2018/month=10", "users"
FOREIGN = {"users/_theirs/notes.txt": "theirs", "songplays/.DS_Store": "theirs"}  # hidden names: not the job's
Lake = dict[str, str]
# The run at work: its id, its lake (None: that of the settings), and what lists the logs of its input.
now = SimpleNamespace(run="", lake=None, logs=tuple)


def without_spark(patch: pytest.MonkeyPatch) -> None:
    """From here on etl.run needs no Spark, asks `now` what its run is, and makes its requests one after another."""
    storage = etl.storage
    patch.setattr(
        etl, "storage", lambda place, settings: Source() if place == "in" else now.lake or storage(place, settings)
    )
    patch.setattr(etl, "build", build)
    patch.setattr(etl, "new_report", lambda settings: {"run": now.run, "outcome": "", "started": ""})
    patch.setattr(etl, "spark_session", lambda *arguments: None)
    patch.setattr(etl, "address", lambda spark, settings, place: place)
    patch.setattr(etl, "side_by_side", lambda call, *arguments: list(map(call, *arguments)))


class Source:
    """The input, "in"."""

    root = "in"

    def files(self, kind: str) -> dict[str, etl.File]:
        names = now.logs() if kind == "log_data" else ("song_data/songs.json",)
        return {name: etl.File(1, "mark") for name in names}


def build(work: etl.Work, settings: etl.Settings, changes: etl.Changes) -> dict[str, list]:
    """As etl.build: stages what the new input makes of the lake, and returns the lake's files."""
    files, run = work.base.files, work.report["run"]
    new, gone = ({Path(name).stem for name in names["log_data"]} for names in (changes.new, changes.gone))
    plays = [file for file in files if file.startswith(NOVEMBER)]
    users = [file for file in files if file.startswith(USERS)] if gone else []
    staged = {NOVEMBER: rows_of(work.lake, plays) - gone | new, USERS: rows_of(work.lake, users) - gone | new}
    if not files:
        staged[OCTOBER] = {"old"}
    after = {file: facts for file, facts in files.items() if file not in plays + users}
    for partition, rows in staged.items():
        text = " ".join(sorted(rows))
        work.lake.write(f"{work.staging}/{partition}/{run}.parquet", text)
        after[f"{partition}/{run}.parquet"] = [len(text), len(rows)]
    return after


def rows_of(lake: etl.Disk | etl.Bucket, files: Iterable[str]) -> set[str]:
    texts = {file: lake.read(file) for file in files}
    for file, text in texts.items():
        if text is None:
            raise FileNotFoundError(2, "No such file or directory", file)  # as Spark's: another run has replaced it
    return {row for text in texts.values() for row in text.split()}


class Client:
    """S3 in this process, with three keys on a page of a list. A request to a server costs a hundred times as much."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}

    def put_object(self, Bucket: str, Key: str, Body: bytes, IfNoneMatch: str = "") -> dict:
        self.refuse("PreconditionFailed", IfNoneMatch and Key in self.bodies)
        self.bodies[Key] = Body
        return {}

    def get_object(self, Bucket: str, Key: str) -> dict:
        self.refuse("NoSuchKey", Key not in self.bodies)
        return {"Body": io.BytesIO(self.bodies[Key])}

    def copy_object(self, Bucket: str, Key: str, CopySource: dict) -> dict:
        self.refuse("NoSuchKey", CopySource["Key"] not in self.bodies)
        self.bodies[Key] = self.bodies[CopySource["Key"]]
        return {}

    def delete_object(self, Bucket: str, Key: str) -> dict:
        self.bodies.pop(Key, None)
        return {}

    def list_objects_v2(self, Bucket: str, Prefix: str, ContinuationToken: str = "") -> dict:
        keys = sorted(key for key in self.bodies if key.startswith(Prefix) and key > ContinuationToken)
        entries = [{"Key": key, "Size": len(self.bodies[key]), "ETag": "mark"} for key in keys[:3]]
        return {"Contents": entries, **({"NextContinuationToken": keys[2]} if len(keys) > 3 else {})}

    @staticmethod
    def refuse(code: str, refused: object) -> None:
        if refused:
            raise ClientError({"Error": {"Code": code, "Message": code}}, "an operation")


def contents(lake: etl.Disk | etl.Bucket) -> Lake:
    return {name: lake.read(name) for name in lake.files("")}


def tables(lake: Lake) -> Lake:
    """What readers see."""
    return {name: text for name, text in lake.items() if not etl.is_hidden(name)}


def rows(lake: Lake, partition: str) -> list[str]:
    """The rows that readers see, sorted; one that two files have counts twice."""
    return sorted(row for name, text in tables(lake).items() if name.startswith(partition) for row in text.split())


def ledgers(lake: Lake) -> dict[int, etl.Ledger]:
    """The ledgers by number; a stub is one without files."""
    return {int(Path(name).stem): parsed(text) for name, text in lake.items() if name.startswith(f"{etl.LEDGER}/")}


@lru_cache(None)
def parsed(text: str) -> etl.Ledger:
    return etl.Ledger(**json.loads(text))


def newest(lake: Lake) -> etl.Ledger:
    found = ledgers(lake)
    return found[max(found)] if found else etl.Ledger()


def problems(lake: Lake, ended: Iterable[tuple[str, str]] = ()) -> Iterator[str]:
    """What must never be, at any moment. ended: the runs that have ended, and how."""
    found, seen, top = ledgers(lake), tables(lake), newest(lake)
    committed = {ledger.run: number for number, ledger in found.items()}
    if sorted(found) != list(range(1, len(found) + 1)):
        yield f"a ledger's number has vanished: {sorted(found)} are left"
    for name in seen:
        if Path(name).stem not in committed:
            yield f"a table has a file of a run that has not committed: {name}"
    for name in FOREIGN.keys() - lake.keys():
        yield f"a file that is not the job's was deleted: {name}"
    for run, how in ended:
        if how == "done" and f"log_data/{run}.json" not in top.inputs.get("log_data", ()):
            yield f"a run succeeded, and its input is not published: {run}"
        if how.startswith(("lost", "failed")) and run in committed:
            yield f"a run has committed and says the contrary: {run} {how}"
        if how.startswith("crashed"):
            yield f"a run ended with a stack trace: {run} {how}"
        if how == "done" and committed.get(run) == top.number and seen.keys() != top.files.keys():
            yield f"a run has published, and the tables are not as its ledger says: {seen.keys() ^ top.files.keys()}"
    before = found.get(top.number - 1, etl.Ledger())
    for name in seen.keys() - top.files.keys() - before.files.keys():
        yield f"readers see a file of neither the old tables nor the new: {name}"
    for partition in {str(Path(name).parent) for name in (*top.files, *before.files)}:
        old, new = ({name for name in files if name.startswith(partition)} for files in (before.files, top.files))
        if not (old <= seen.keys() or new <= seen.keys()):
            yield f"readers miss rows of {partition}: they see {sorted(seen)}"
    for ledger in found.values():
        for name in ledger.inputs.get("log_data", {}).keys() - top.inputs["log_data"].keys():
            yield f"rows that were published are gone: {name}"


def not_healed(before: Lake, after: Lake) -> Iterator[str]:
    """What one more run must have put right. before, after: the lake around that run."""
    top, whole = newest(after), [ledger for ledger in ledgers(after).values() if ledger.files]
    if tables(after).keys() != top.files.keys():
        yield f"the tables are not as the ledger says: {tables(after).keys() ^ top.files.keys()}"
    for partition in (NOVEMBER, USERS):
        if rows(after, partition) != sorted(Path(name).stem for name in top.inputs["log_data"]):
            yield f"{partition} has not the rows of the input once: {rows(after, partition)}"
    if rows(after, OCTOBER) != ["old"]:
        yield f"{OCTOBER} has not its rows"
    reports = {Path(name).stem: text for name, text in after.items() if name.startswith(f"{etl.RUNS}/")}
    for ledger in ledgers(after).values():
        if '"published"' not in reports.get(ledger.run, ""):
            yield f"a committed run has no report: {ledger.run}"
    if len(whole) > 3:
        yield f"old ledgers are not cut: {len(whole)} are whole"
    if top.number > newest(before).number and (left := [name for name in after if name.startswith(etl.STAGING)]):
        yield f"staging is left: {left}"
    untouched = [name for name in newest(before).files if name.startswith(OCTOBER)]
    if untouched and untouched[0] not in top.files:
        yield "all tables were rebuilt, which nothing called for"
    yield from problems(after)


def outcome(run: str, settings: etl.Settings, logs: Callable, lake: object = None, full: bool = False) -> str:
    """How a run ends: done, lost to another, uncertain, unfinished (committed), failed or crashed, and why."""
    now.run, now.logs, now.lake = run, logs, lake
    try:
        etl.run(settings, full)
    except etl.UncertainError as error:
        return f"uncertain: {error}"
    except etl.FAULTS as error:
        why = etl.one_line(error)
        if "another run published first" in why:
            return f"lost: {why}"
        return f"{'unfinished' if 'the run has committed' in why else 'failed'}: {why}"
    except Exception as error:
        return f"crashed: {error!r}"
    finally:
        now.lake = None
    return "done"
