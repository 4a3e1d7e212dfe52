"""To create the next ledger is to commit, whatever else happens: the rules of publishing, tried without Spark."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import explorer
import pytest
import sparkless
from botocore.exceptions import ClientError, ReadTimeoutError
from explorer import Explorer, first_lake
from sparkless import NOVEMBER, OCTOBER, USERS, Lake, now

import etl

REPORT = etl.new_report  # the real one
EVERY = ("list", "read", "write", "create", "copy", "move", "delete")
LONG = float(os.environ.get("EXPLORE_SECONDS", "60"))  # of the processor, for each of the explorations of test-killed
DEFECT = pytest.mark.xfail(strict=True, reason="reported to the author of etl.py")


@pytest.fixture(autouse=True)
def without_spark(monkeypatch: pytest.MonkeyPatch) -> None:
    sparkless.without_spark(monkeypatch)


# --- any interleaving -----------------------------------------------------------------------------------------------


def explored(record_property: Callable, names: str, before: str = "r0", disk: bool = False, **more: object) -> None:
    """Visits all states of these runs, which find the lake of the runs `before`."""
    some = Explorer(tuple(names.split()), first_lake(disk, *before.split()), disk, **more)
    etl.log.disabled = True
    try:
        complete = some.all(LONG)
    finally:
        etl.log.disabled = False
    assert not some.found, "\n".join(["", *some.found.values()])
    assert complete or LONG <= 60
    record_property("states", len(some.parents))


@DEFECT
@pytest.mark.parametrize("disk", [False, True], ids=["S3", "disk"])
@pytest.mark.parametrize("before", ["", "r0"], ids=["first runs", "later runs"])
def test_two_runs_at_once_break_no_promise(disk: bool, before: str, record_property: Callable) -> None:
    explored(record_property, "r1 r2", before, disk)


@DEFECT
def test_a_full_run_beside_another_breaks_no_promise(record_property: Callable) -> None:
    explored(record_property, "r1 f1")


@DEFECT
def test_a_commit_without_an_answer_breaks_no_promise_even_if_it_comes_late(record_property: Callable) -> None:
    explored(record_property, "r1 r2", faults=1, late=True)


@DEFECT
def test_a_store_that_fails_at_any_call_breaks_no_promise(record_property: Callable) -> None:
    explored(record_property, "r1 r2", faults=1, failing=EVERY)


@DEFECT
def test_a_run_that_sleeps_while_others_publish_breaks_no_promise(record_property: Callable) -> None:
    explored(record_property, "r1", "r0 a0", others=4, killed=False)


@DEFECT
@pytest.mark.parametrize("disk", [False, True], ids=["S3", "disk"])
def test_three_runs_on_random_ways_break_no_promise(disk: bool, record_property: Callable) -> None:
    some = Explorer(("r1", "r2", "f3"), first_lake(disk, "r0"), disk, faults=2, failing=EVERY, late=True, others=1)
    some.walks(500, seed=1)
    assert not some.found, "\n".join(["", *some.found.values()])
    record_property("states", len(some.parents))


@pytest.mark.killed
@DEFECT
@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"names": "r1 r2 r3"}, id="three runs on S3"),
        pytest.param({"names": "r1 r2 r3", "disk": True}, id="three runs on a disk"),
        pytest.param({"names": "r1 r2", "merge": False}, id="without merging equal places"),
        pytest.param({"names": "r1 r2", "disk": True, "faults": 2, "failing": EVERY}, id="two errors on a disk"),
        pytest.param({"names": "r1 r2", "faults": 2, "failing": EVERY, "late": True}, id="two errors on S3"),
        pytest.param({"names": "f1 f2", "disk": True}, id="two full runs"),
        pytest.param({"names": "r1 r2", "others": 2}, id="two runs and two that may be killed"),
        pytest.param({"names": "r1", "others": 4}, id="a run that sleeps while four others may be killed"),
    ],
)
def test_longer_explorations_find_nothing_either(more: dict, record_property: Callable) -> None:
    explored(record_property, **more)


THEIRS = "songplays/theirs.parquet"


def with_theirs(lake: Lake) -> Lake:
    """Somebody puts a file among the tables. The second name is for the test to know."""
    return lake if "_theirs" in lake else {**lake, THEIRS: "theirs", "_theirs": ""}


def without_theirs(lake: Lake) -> Lake:
    return {name: text for name, text in lake.items() if name not in (THEIRS, "_theirs")}


def theirs_stays(lake: Lake, ended: list) -> Iterator[str]:
    if "_theirs" in lake and THEIRS not in lake:
        yield "a file that is not the job's was deleted: it came in mid-run"
    yield from sparkless.problems(without_theirs(lake), ended)


def theirs_stops_the_next_run(lake: Lake, disk: bool) -> Iterator[str]:
    if "_theirs" in lake:
        how, lakes = explorer.alone(lake, "s0", disk)
        if THEIRS not in lakes[-1] or not how.startswith(f"failed: lake/{THEIRS}"):
            yield f"the next run does not stop at a file that is not the job's: {how}"
    yield from explorer.healed(without_theirs(lake), disk)


def test_a_file_of_others_that_comes_at_any_moment_stays_and_stops_the_next_run(record_property: Callable) -> None:
    checks = {"check": theirs_stays, "heal": theirs_stops_the_next_run}
    explored(record_property, "r1", faults=1, failing=(), person=with_theirs, **checks)


def without(*endings: str) -> Callable[[Lake], Lake]:
    """Somebody removes the files whose names end so."""
    return lambda lake: {name: text for name, text in lake.items() if not name.endswith(endings)}


def besides(*texts: str) -> Callable[[Iterable[str]], Iterator[str]]:
    return lambda found: (problem for problem in found if not any(text in problem for text in texts))


@DEFECT
def test_a_file_of_the_tables_that_is_removed_at_any_moment_is_built_again(record_property: Callable) -> None:
    for ending in ("month=10/r0.parquet", "11/r1.parquet"):
        explored(
            record_property,
            "r1",
            faults=1,
            failing=(),
            person=without(ending),
            check=lambda lake, ended: besides("readers miss", "ledger says")(sparkless.problems(lake, ended)),
            heal=lambda lake, disk: besides("nothing called for")(explorer.healed(lake, disk)),
        )


def old_rows_stay(lake: Lake, ended: list) -> Iterator[str]:
    for partition, row in ((NOVEMBER, "r0"), (USERS, "r0"), (OCTOBER, "old")):
        if row not in sparkless.rows(lake, partition):
            yield f"readers miss an old row of {partition}"


@DEFECT
def test_a_staged_file_that_is_removed_at_any_moment_costs_no_reader_a_row(record_property: Callable) -> None:
    for staged in (f"000000001-r1/{NOVEMBER}/r1.parquet", "000000001-r1/users/r1.parquet"):
        explored(
            record_property,
            "r1 r2",
            faults=1,
            failing=(),
            person=without(staged),
            check=old_rows_stay,
            heal=lambda lake, disk: besides("nothing called for")(explorer.healed(lake, disk)),
        )


# --- one run after another ------------------------------------------------------------------------------------------


class Job:
    """The job on a lake of its own. Before a run whose name begins with r, a log of that name is delivered."""

    def __init__(self, config: Path, output: str) -> None:
        self.config, self.output, self.logs = config, output, []
        keys = "AWS_ACCESS_KEY_ID =\nAWS_SECRET_ACCESS_KEY =\n"
        config.write_text(f"[AWS CREDS]\n{keys}[LAKE]\nINPUT = in\nOUTPUT = {output}\nMAX_SHRINK = 1\n")

    def __call__(self, run: str, *options: str) -> int:
        """The exit code."""
        self.logs += [f"log_data/{run}.json"] if run.startswith("r") else []
        now.run, now.logs, now.lake = run, lambda: self.logs, None
        return etl.main(["--config", str(self.config), *options])

    @property
    def lake(self) -> etl.Disk | etl.Bucket:
        return etl.storage(self.output, etl.read_settings(str(self.config)))

    def seen(self) -> Lake:
        return sparkless.tables(sparkless.contents(self.lake))

    def whole(self, *rows: str) -> bool:
        """Whether the tables have just these rows, as the newest ledger says."""
        seen = self.seen()
        listed = sparkless.newest(sparkless.contents(self.lake)).files
        found = [sparkless.rows(seen, partition) for partition in (NOVEMBER, USERS, OCTOBER)]
        return seen.keys() == listed.keys() and found == [[*rows], [*rows], ["old"]]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path / "dl.cfg", str(tmp_path / "lake"))


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> sparkless.Client:
    client = sparkless.Client()
    monkeypatch.setattr(etl, "s3_client", lambda settings: client)
    return client


@pytest.fixture
def s3_job(tmp_path: Path, client: sparkless.Client) -> Job:
    return Job(tmp_path / "s3.cfg", "s3://lake/tables")


def last_line(caplog: pytest.LogCaptureFixture) -> str:
    return caplog.records[-1].getMessage()


def lines(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


def during_build(patch: pytest.MonkeyPatch, act: Callable[[etl.Work], None]) -> None:
    """The next build first does this. A build within it is an ordinary one."""

    def build(work: etl.Work, *arguments: object) -> dict:
        patch.setattr(etl, "build", sparkless.build)
        act(work)
        now.run = work.report["run"]
        return sparkless.build(work, *arguments)

    patch.setattr(etl, "build", build)


def interrupted(*arguments: object) -> None:
    raise KeyboardInterrupt


def test_a_ledgers_number_never_vanishes_and_old_ledgers_are_cut_to_a_stub(job: Job) -> None:
    assert [job(f"r{n}") for n in range(8)] == [0] * 8
    found = sparkless.ledgers(sparkless.contents(job.lake))
    assert {number: ledger.run for number, ledger in found.items()} == {n + 1: f"r{n}" for n in range(8)}
    assert sorted(number for number, ledger in found.items() if ledger.files) == [6, 7, 8]
    assert {size for number, (_, size) in etl.ledgers(job.lake).items() if number < 6} == {26}


def test_two_runs_of_the_same_moment_have_different_ids() -> None:
    ids = {REPORT(etl.Settings("in", "lake"))["run"][-12:] for _ in range(100)}
    assert len(ids) == 100 and all(re.fullmatch("[0-9a-f]{12}", name) for name in ids)


def test_a_run_works_in_a_staging_of_its_base_number_and_its_id(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    assert job("r0") == 0
    during_build(monkeypatch, lambda work: names.extend(job.lake.files("")))
    names: list[str] = []
    assert job("r1") == 0
    assert [name for name in names if name.startswith("_staging/")][0].startswith("_staging/000000001-r1/")


def test_a_commit_clears_the_stagings_of_older_bases_and_no_others(job: Job) -> None:
    assert job("r0") == 0
    for number in (0, 1, 2):
        job.lake.write(f"_staging/{number:09}-x/users/part-0.parquet", "x")
    assert job("s1") == 0
    assert [name[9:20] for name in sorted(job.lake.files("_staging"))] == ["000000001-x", "000000002-x"]
    assert job("r1") == 0
    assert [name[9:20] for name in job.lake.files("_staging")] == ["000000002-x"]


def test_a_run_that_finds_nothing_new_reports_so_and_creates_no_ledger(job: Job) -> None:
    assert [job("r0"), job("s1")] == [0, 0]
    assert list(sparkless.ledgers(sparkless.contents(job.lake))) == [1]
    assert json.loads(job.lake.read("_runs/s1.json"))["outcome"] == "nothing new"


def test_a_run_that_was_killed_after_its_commit_gets_its_files_and_its_report_from_the_next(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert job("r0") == 0
    with monkeypatch.context() as patch:
        patch.setattr(etl, "settle_own", interrupted)
        assert job("r1") == 130
    assert job.lake.read("_runs/r1.json") is None and sparkless.rows(job.seen(), USERS) == ["r0"]
    assert job("s1") == 0
    assert json.loads(job.lake.read("_runs/r1.json"))["outcome"] == "published" and job.whole("r0", "r1")


def test_a_report_that_was_lost_is_written_again(job: Job) -> None:
    assert job("r0") == 0
    before = job.lake.read("_runs/r0.json")
    job.lake.delete(["_runs/r0.json"])
    assert job("s1") == 0
    assert job.lake.read("_runs/r0.json") == before


def test_of_two_runs_at_once_the_second_to_commit_changes_nothing_and_says_so(
    job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert job("r0") == 0
    monkeypatch.setattr(sparkless, "rows_of", rows_of_before := lambda lake, files: {"r0"} if files else set())
    during_build(monkeypatch, lambda work: job("r2"))
    assert job("r1") == 1 and rows_of_before
    assert last_line(caplog) == f"{job.output}: another run has published first; this run changed nothing: run it again"
    assert "another run is at work or was killed" in lines(caplog) and '"process"' in lines(caplog)
    assert job.lake.files("_staging") == {} and "another run" in json.loads(job.lake.read("_runs/r1.json"))["outcome"]
    assert job.whole("r0", "r1", "r2")  # the log r1 had been delivered when r2 looked


def test_a_run_whose_base_was_replaced_while_it_worked_says_that_another_has_published(
    job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert job("r0") == 0
    during_build(monkeypatch, lambda work: job("r2"))
    assert job("r1") == 1  # November's file of r0 is gone
    assert "another run has published first" in last_line(caplog) and job.lake.files("_staging") == {}


@DEFECT
def test_files_that_came_after_a_run_had_listed_the_input_are_not_taken_for_vanished(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert job("r0") == 0
    opened = etl.opened

    def slowly_opened(*arguments: object) -> object:
        monkeypatch.setattr(etl, "opened", opened)
        job.logs = [*job.logs]
        assert job("r2") == 0
        now.run = "r1"
        return opened(*arguments)

    monkeypatch.setattr(etl, "opened", slowly_opened)
    assert job("r1") == 0
    assert job.whole("r0", "r1", "r2")


@DEFECT
def test_a_run_whose_staging_another_clears_at_its_start_does_not_accuse_the_store(
    job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert job("r0") == 0
    create = etl.Disk.create

    def slow_create(lake: etl.Disk, name: str, text: str, draft: str) -> bool:
        if name.endswith("r1/run.json"):
            monkeypatch.setattr(etl.Disk, "create", create)
            assert job("r2") == 0
            now.run = "r1"
        return create(lake, name, text, draft)

    monkeypatch.setattr(etl.Disk, "create", slow_create)
    assert job("r1") == 1
    assert "another run has published first" in last_line(caplog)


def test_a_run_that_fails_leaves_the_tables_reports_and_clears_its_staging(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert job("r0") == 0

    def fail(work: etl.Work) -> None:
        work.lake.write(f"{work.staging}/users/part-0.parquet", "x")
        raise etl.JobError("too many bad lines")

    during_build(monkeypatch, fail)
    assert job("r1") == 1
    assert job.whole("r0") and job.lake.files("_staging") == {}
    assert json.loads(job.lake.read("_runs/r1.json"))["outcome"] == "failed: too many bad lines"


def test_an_interrupted_run_leaves_the_tables_and_the_next_clears_up(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    assert job("r0") == 0
    during_build(monkeypatch, interrupted)
    assert job("r1") == 130
    assert job.whole("r0") and job.lake.files("_staging")
    assert job("s1") == 0
    assert job.whole("r0", "r1") and job.lake.files("_staging") == {}


def test_a_run_that_cannot_finish_after_its_commit_says_so_and_the_next_finishes_it(
    job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert job("r0") == 0
    during_build(monkeypatch, lambda work: monkeypatch.setattr(etl.Disk, "move", full_disk))
    move = etl.Disk.move

    def full_disk(lake: etl.Disk, moves: dict) -> None:
        monkeypatch.setattr(etl.Disk, "move", move)
        raise OSError(errno.ENOSPC, "No space left on device")

    assert job("r1") == 1
    assert "the disk is full" in last_line(caplog) and "the run has committed" in last_line(caplog)
    assert job("s1") == 0
    assert job.whole("r0", "r1")


# --- files that are not as the ledger says --------------------------------------------------------------------------


def test_a_lake_of_version_1_is_rebuilt_with_one_line_and_its_files_go(
    job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    files = {
        "songplays/year=2018/month=11/part-0.parquet": 2,
        "users/part-0.parquet": 2,
        "_state/events/part-0.parquet": 2,
    }
    old = {
        **dict.fromkeys(files, "v1"),
        "_state/ledger.json": json.dumps({"files": files}),
        "_lock/000000000007.json": "{}",
    }
    for name, text in old.items():
        job.lake.write(name, text)
    assert job("r0") == 0
    assert lines(caplog).count("version 1 of this job wrote the lake: all tables are rebuilt") == 1
    assert job.whole("r0") and not old.keys() & job.lake.files("").keys()


@pytest.mark.parametrize(
    "damage", ["{", "\0" * 500, "null", pytest.param("", marks=DEFECT), pytest.param("[]", marks=DEFECT)]
)
def test_a_damaged_ledger_stops_the_run_which_names_it_and_the_way_out(
    job: Job, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert [job("r0"), job("r1")] == [0, 0]
    job.lake.write("_state/ledger/000000002.json", damage)
    before = sparkless.contents(job.lake)
    assert job("r2") == 1
    place = f"{job.output}/_state/ledger/000000002.json"
    assert last_line(caplog) == f"{place} is damaged; rebuild all tables with --full"
    assert sparkless.contents(job.lake) == before


@DEFECT
@pytest.mark.parametrize("damage", ["{", "", "[]"])
def test_full_rebuilds_a_lake_whose_ledger_is_damaged(job: Job, damage: str) -> None:
    assert [job("r0"), job("r1")] == [0, 0]
    job.lake.write("_state/ledger/000000002.json", damage)
    assert job("s1", "--full") == 0
    assert job.whole("r0", "r1")


def test_a_lake_whose_newest_ledger_was_removed_stops_the_run_and_loses_nothing(
    job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    assert [job("r0"), job("r1")] == [0, 0]
    before = job.seen()
    job.lake.delete(["_state/ledger/000000002.json"])
    assert job("r2") == 2
    assert f"{NOVEMBER}/r1.parquet" in last_line(caplog) and job.seen() == before


@pytest.mark.parametrize("options", [[], ["--full"]])
def test_a_lake_whose_ledgers_were_all_removed_is_not_rebuilt_over(
    job: Job, options: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert job("r0") == 0
    before = job.seen()
    job.lake.delete(job.lake.files("_state/ledger"))
    assert job("r1", *options) == 2
    assert f"{OCTOBER}/r0.parquet (and 2 more): lies among the tables, but no ledger lists it" in last_line(caplog)
    assert job.seen() == before


@pytest.mark.parametrize("text", [None, "longer"])
def test_a_listed_file_that_is_missing_or_has_another_size_is_a_full_run_with_one_line(
    job: Job, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    assert job("r0") == 0
    job.lake.delete([f"{OCTOBER}/r0.parquet"])
    if text:
        job.lake.write(f"{OCTOBER}/r0.parquet", text)
    assert job("s1") == 0
    assert lines(caplog).count("/r0.parquet is missing, or not as the last run left it: all tables are rebuilt") == 1
    assert job.whole("r0")


@pytest.mark.parametrize(
    "name", ["songplays/report.csv", "users/year=2018/part-0.parquet", "_state/songs/part-9.parquet"]
)
@pytest.mark.parametrize("options", [[], ["--full"]])
def test_a_file_among_the_tables_that_no_ledger_lists_stops_the_run_and_stays(
    job: Job, name: str, options: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert job("r0") == 0
    job.lake.write(name, "theirs")
    assert job("r1", *options) == 2
    assert (
        last_line(caplog).startswith(f"{job.output}/{name}: lies among the tables") and job.lake.read(name) == "theirs"
    )


def test_a_first_run_stops_at_a_file_of_others(job: Job) -> None:
    job.lake.write("songs/music.mp3", "theirs")
    assert job("r0") == 2 and list(job.lake.files("")) == ["songs/music.mp3"]


@pytest.mark.parametrize("name", ["users/.DS_Store", "songplays/_backup/part-0.parquet", "songs/year=1999/._x.parquet"])
def test_hidden_files_of_others_neither_count_nor_go(job: Job, name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert job("r0") == 0
    job.lake.write(name, "theirs")
    assert [job("r1"), job("r2", "--full")] == [0, 0]
    assert lines(caplog).count("all tables are rebuilt") == 1 and job.lake.read(name) == "theirs"


def test_a_replaced_file_that_comes_back_within_ten_ledgers_goes_and_later_counts_as_one_of_others(job: Job) -> None:
    assert [job("r0"), job("r1")] == [0, 0]  # ledger 2 replaces November's file of r0
    for number in range(2, 13):
        job.lake.write(f"{NOVEMBER}/r0.parquet", "late")
        assert job(f"r{number}") == (0 if number <= 11 else 2), number
        assert (f"{NOVEMBER}/r0.parquet" in job.seen()) == (number > 11)


@pytest.mark.parametrize(
    "change, why",
    [
        (lambda patch, job: patch.setattr(etl, "MEANING", -1), "meaning was 2 in the last run and is -1"),
        (
            lambda patch, job: job.config.write_text(
                job.config.read_text() + "PLAYS_PARTITION_BY = year, month, day\n"
            ),
            "plays_partition_by was 'year, month' in the last run and is 'year, month, day'",
        ),
        (
            lambda patch, job: (
                job.logs.extend(f"log_data/{n}.json" for n in range(200)) or job("r1") or job.logs.clear()
            ),
            "202 files of the input have changed or vanished",
        ),
    ],
)
def test_other_rules_or_many_changes_are_a_full_run_with_one_line(
    job: Job, change: Callable, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert job("r0") == 0
    change(monkeypatch, job)
    assert job("r2") == 0
    assert lines(caplog).count(f"{why}: all tables are rebuilt") == 1


# --- what a disk or a store may answer ------------------------------------------------------------------------------


def refused(code: str, status: int) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")


def answers(
    patch: pytest.MonkeyPatch, client: sparkless.Client, *answers: object, below: str = "/_state/ledger/"
) -> list:
    """What the store says to the next requests that create a file: an error to raise; "done" carries the request out
    before the next answer is given; None is an ordinary answer. Returns the answers that are still to be given."""
    put, left = client.put_object, list(answers)

    def put_object(**request: object) -> dict:
        if "IfNoneMatch" in request and below in request["Key"] and left:
            while (answer := left.pop(0)) == "done":
                put(**request)
            if answer:
                raise answer
        return put(**request)

    patch.setattr(client, "put_object", put_object)
    return left


NO_ANSWER = ReadTimeoutError(endpoint_url="http://store")
BUSY = refused("ConditionalRequestConflict", 409)


def no_link(source: str, target: str) -> None:
    """As the system's, on a disk without hard links: first it looks whether the name is taken."""
    if os.path.exists(target):
        raise FileExistsError(errno.EEXIST, "File exists", source, None, target)
    raise PermissionError(errno.EPERM, "Operation not permitted", source, None, target)


def test_a_disk_without_hard_links_is_refused_with_the_remedy(
    job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "link", no_link)
    assert job("r0") == 1
    assert "this disk has no hard links, which a commit needs; choose another OUTPUT" in last_line(caplog)
    assert job.seen() == {}


@DEFECT
def test_a_disk_without_hard_links_is_found_out_before_the_work(
    job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "link", no_link)
    during_build(monkeypatch, lambda work: pytest.fail("it works"))
    assert job("r0") == 1
    assert "may have published" not in last_line(caplog) and job.lake.files("_staging") == {}


def test_a_store_that_ignores_if_none_match_is_found_out_before_the_work(
    s3_job: Job, client: sparkless.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put = client.put_object
    monkeypatch.setattr(client, "put_object", lambda IfNoneMatch="", **request: put(**request))
    during_build(monkeypatch, lambda work: pytest.fail("it works"))
    assert s3_job("r0") == 1
    assert "the store ignores If-None-Match, so two runs could publish at once" in last_line(caplog)
    assert s3_job.lake.files("_staging") == {}


def test_a_store_without_conditional_writes_is_found_out_before_the_work(
    s3_job: Job, client: sparkless.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers(monkeypatch, client, refused("NotImplemented", 501), below="")
    during_build(monkeypatch, lambda work: pytest.fail("it works"))
    assert s3_job("r0") == 1
    assert "the job needs conditional writes (If-None-Match)" in last_line(caplog)


@pytest.mark.parametrize(
    "said",
    [
        pytest.param([BUSY, BUSY, None], id="busy twice"),
        pytest.param([NO_ANSWER, None], id="no answer once"),
        pytest.param(["done", NO_ANSWER], id="done, but no answer"),
        pytest.param(["done", BUSY], id="done, but it says busy"),
        pytest.param(["done", refused("PreconditionFailed", 412)], id="done twice by the client"),
        pytest.param(
            [refused("InternalError", 500), "done", refused("PreconditionFailed", 412)], id="failed, then done"
        ),
    ],
)
def test_a_commit_is_tried_until_the_answer_is_certain(
    s3_job: Job, client: sparkless.Client, said: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert s3_job("r0") == 0
    left = answers(monkeypatch, client, *said)
    assert s3_job("r1") == 0
    assert left == [] and s3_job.whole("r0", "r1")


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("said", [[NO_ANSWER] * 2, [BUSY] * 10])
def test_without_a_certain_answer_a_run_fails_keeps_its_staging_and_the_next_shows(
    s3_job: Job,
    client: sparkless.Client,
    said: list,
    done: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert s3_job("r0") == 0
    get = client.get_object

    def nothing_there(**request: object) -> dict:
        if request["Key"].endswith("/000000002.json"):
            raise refused("NoSuchKey", 404)
        return get(**request)

    left = answers(monkeypatch, client, *(["done"] if done else []), *said)
    with monkeypatch.context() as patch:
        patch.setattr(client, "get_object", nothing_there)
        assert s3_job("r1") == 1
    assert "this run may have published or not: the next run will show" in last_line(caplog)
    assert left == [] and f"_staging/000000001-r1/{NOVEMBER}/r1.parquet" in s3_job.lake.files("_staging")
    assert s3_job("s1") == 0
    runs = [ledger.run for ledger in sparkless.ledgers(sparkless.contents(s3_job.lake)).values()]
    assert runs == ["r0", "r1" if done else "s1"] and s3_job.whole("r0", "r1")


def test_a_commit_that_the_store_carries_out_late_counts(
    s3_job: Job, client: sparkless.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert s3_job("r0") == 0
    late = []
    with monkeypatch.context() as patch:
        create = etl.Bucket.create

        def slow_create(lake: etl.Bucket, name: str, text: str, draft: str) -> bool:
            if name.endswith("/000000002.json"):
                late.append((name, text))
                raise etl.StoreError(lake.root, NO_ANSWER)
            return create(lake, name, text, draft)

        patch.setattr(etl.Bucket, "create", slow_create)
        assert s3_job("r1") == 1
    s3_job.lake.write(*late[0])
    assert s3_job("s1") == 0
    assert s3_job.whole("r0", "r1") and json.loads(s3_job.lake.read("_runs/r1.json"))["outcome"] == "published"
