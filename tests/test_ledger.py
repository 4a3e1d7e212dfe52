"""To create the next ledger is to commit, whatever else happens: the rules of publishing, tried without Spark."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import explorer
import pytest
import sparkless
from botocore.exceptions import ClientError, ReadTimeoutError
from conftest import Outcome, job
from explorer import Explorer, first_lake
from sparkless import NOVEMBER, OCTOBER, USERS, Lake, now

import etl

REPORT = etl.new_report  # the real one
EVERY = ("list", "read", "write", "create", "copy", "move", "delete")
MUCH = {"faults": 2, "failing": EVERY, "late": True, "others": 1}  # goes wrong
MANY = int(os.environ.get("EXPLORE_STATES", "1_000_000"))  # at most, in each of the explorations of make test-killed


@pytest.fixture(autouse=True)
def without_spark(monkeypatch: pytest.MonkeyPatch) -> None:
    sparkless.without_spark(monkeypatch)


# --- any interleaving -----------------------------------------------------------------------------------------------


@pytest.fixture
def explored(monkeypatch: pytest.MonkeyPatch, record_property: Callable) -> Callable[..., None]:
    """explored("r1 r2") visits the states of these runs, which find the lake of the runs `before`."""
    monkeypatch.setattr(etl.log, "disabled", True)  # there are ten thousands of runs

    def explore(names: str, before: str = "r0", disk: bool = False, walks: int = 0, **more: object) -> None:
        limit = more.pop("limit", math.inf)
        some = Explorer(tuple(names.split()), first_lake(disk, *before.split()), disk, **more)
        some.walks(walks, seed=1) if walks else some.all(limit)
        assert not some.found, "\n".join(["", *some.found.values()])
        record_property("states", len(some.parents))

    return explore


@pytest.mark.parametrize("before, disk", [("", False), ("r0", True)], ids=["first runs on S3", "later runs on a disk"])
def test_two_runs_at_once_break_no_promise(before: str, disk: bool, explored: Callable) -> None:
    explored("r1 r2", before, disk)


def test_a_commit_without_an_answer_breaks_no_promise_even_if_it_comes_late(explored: Callable) -> None:
    explored("r1 r2", faults=1, late=True)


def test_a_store_that_fails_at_any_call_breaks_no_promise(explored: Callable) -> None:
    explored("r1 r2", faults=1, failing=EVERY)


def test_a_run_that_sleeps_while_others_publish_breaks_no_promise(explored: Callable) -> None:
    explored("r1", "r0 a0", others=4, killed=False)


@pytest.mark.parametrize("disk", [False, True], ids=["S3", "disk"])
def test_three_runs_on_random_ways_break_no_promise(disk: bool, explored: Callable) -> None:
    explored("r1 r2 f3", disk=disk, walks=100, **MUCH)


@pytest.mark.killed
@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"names": "r1 r2 r3"}, id="three runs on S3"),
        pytest.param({"names": "r1 r2 r3", "disk": True}, id="three runs on a disk"),
        pytest.param({"names": "r1 r2", "merge": False}, id="without merging equal places"),
        pytest.param({"names": "r1 r2", "disk": True, "faults": 2, "failing": EVERY}, id="two errors on a disk"),
        pytest.param({"names": "r1 r2", "faults": 2, "failing": EVERY, "late": True}, id="two errors on S3"),
        pytest.param({"names": "r1 r2", "before": "", "disk": True}, id="first runs on a disk"),
        pytest.param({"names": "r1 f1"}, id="a run and a full run on S3"),
        pytest.param({"names": "f1 f2", "disk": True}, id="two full runs on a disk"),
        pytest.param({"names": "r1 r2 r3 f4", "walks": 2_000, **MUCH}, id="four runs on random ways on S3"),
        pytest.param(
            {"names": "r1 r2 r3 f4", "disk": True, "walks": 2_000, **MUCH}, id="four runs on random ways on a disk"
        ),
        pytest.param({"names": "r1 r2", "others": 2}, id="two runs and two that may be killed"),
        pytest.param({"names": "r1", "others": 4}, id="a run that sleeps while four others may be killed"),
    ],
)
def test_more_runs_and_more_faults_break_no_promise(more: dict, explored: Callable) -> None:
    explored(limit=MANY, **more)


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


def test_a_file_of_others_that_comes_at_any_moment_stays_and_stops_the_next_run(explored: Callable) -> None:
    checks = {"check": theirs_stays, "heal": theirs_stops_the_next_run}
    explored("r1", faults=1, failing=(), person=with_theirs, **checks)


def without(*endings: str) -> Callable[[Lake], Lake]:
    """Somebody removes the files whose names end so."""
    return lambda lake: {name: text for name, text in lake.items() if not name.endswith(endings)}


def besides(*texts: str) -> Callable[[Iterable[str]], Iterator[str]]:
    return lambda found: (problem for problem in found if not any(text in problem for text in texts))


def test_a_file_of_the_tables_that_is_removed_at_any_moment_is_built_again(explored: Callable) -> None:
    for ending in ("month=10/r0.parquet", "11/r1.parquet"):
        explored(
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


def test_a_staged_file_that_is_removed_at_any_moment_costs_no_reader_a_row(explored: Callable) -> None:
    for staged in (f"000000001-r1/{NOVEMBER}/r1.parquet", "000000001-r1/users/r1.parquet"):
        explored(
            "r1",
            others=1,
            killed=False,
            faults=1,
            failing=(),
            person=without(staged),
            check=old_rows_stay,
            heal=lambda lake, disk: besides("nothing called for")(explorer.healed(lake, disk)),
        )


# --- one run after another ------------------------------------------------------------------------------------------


class Job:
    """The job on a lake of its own. Before a run whose name begins with r, a log of that name is delivered."""

    def __init__(self, output: str) -> None:
        self.output, self.logs = output, []
        self.lake = etl.storage(output, etl.Settings("in", output))

    def run(self, name: str, *options: str, **settings: object) -> Outcome:
        self.logs += [f"log_data/{name}.json"] if name.startswith("r") else []
        with pytest.MonkeyPatch.context() as patch:  # one run may be in the midst of another
            for part, value in {"run": name, "logs": lambda: self.logs, "lake": None}.items():
                patch.setattr(now, part, value)
            return job("in", self.output, *options, MAX_SHRINK=1, **settings)

    def done(self, *names: str) -> None:
        """Runs that succeed, one after another."""
        for name in names:
            assert self.run(name).code == 0

    def contents(self) -> Lake:
        return sparkless.contents(self.lake)

    def seen(self) -> Lake:
        return sparkless.tables(self.contents())

    def outcome_of(self, run: str) -> str:
        """As its report says."""
        return json.loads(self.lake.read(f"_runs/{run}.json"))["outcome"]

    def whole(self, *rows: str) -> bool:
        """Whether the tables have just these rows, as the newest ledger says."""
        seen, listed = self.seen(), sparkless.newest(self.contents()).files
        found = [sparkless.rows(seen, partition) for partition in (NOVEMBER, USERS, OCTOBER)]
        return seen.keys() == listed.keys() and found == [[*rows], [*rows], ["old"]]


@pytest.fixture
def on_disk(tmp_path: Path) -> Job:
    return Job(str(tmp_path / "lake"))


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> sparkless.Client:
    client = sparkless.Client()
    monkeypatch.setattr(etl, "s3_client", lambda settings: client)
    return client


@pytest.fixture
def on_s3(client: sparkless.Client) -> Job:
    return Job("s3://lake/tables")


def during_build(patch: pytest.MonkeyPatch, act: Callable[[etl.Work], None]) -> None:
    """The next build first does this. A build within it is an ordinary one."""

    def build(work: etl.Work, *arguments: object) -> dict:
        patch.setattr(etl, "build", sparkless.build)
        act(work)
        return sparkless.build(work, *arguments)

    patch.setattr(etl, "build", build)


def once(patch: pytest.MonkeyPatch, owner: object, name: str, act: Callable[[], None], when: str = "") -> None:
    """Before the next call of owner.name (of which an argument contains `when`), something else happens."""
    call = getattr(owner, name)

    def called(*arguments: object) -> object:
        if any(when in str(argument) for argument in arguments):
            patch.setattr(owner, name, call)
            act()
        return call(*arguments)

    patch.setattr(owner, name, called)


def interrupted(*arguments: object) -> None:
    raise KeyboardInterrupt


def rebuilds(outcome: Outcome) -> list[str]:
    """Why all tables were rebuilt, by the lines that say so."""
    says = ": all tables are rebuilt"
    return [line.split(" ", 1)[1].removesuffix(says) for line in outcome.lines if line.endswith(says)]


OVERTAKEN = "another run published first; this run changed nothing; run it again"


def test_a_ledgers_number_never_vanishes_and_old_ledgers_are_cut_to_a_stub(on_disk: Job) -> None:
    on_disk.done(*(f"r{n}" for n in range(8)))
    found = sparkless.ledgers(on_disk.contents())
    assert {number: ledger.run for number, ledger in found.items()} == {n + 1: f"r{n}" for n in range(8)}
    assert sorted(number for number, ledger in found.items() if ledger.files) == [6, 7, 8]
    sizes = {file.size for name, file in on_disk.lake.files(etl.LEDGER).items() if name[-6] < "6"}
    assert max(sizes) < 100


def test_two_runs_of_the_same_moment_have_different_ids() -> None:
    ids = {REPORT(etl.Settings("in", "lake"))["run"][-12:] for _ in range(100)}
    assert len(ids) == 100 and all(re.fullmatch("[0-9a-f]{12}", name) for name in ids)


def test_a_run_works_in_a_staging_of_its_base_number_and_its_id(on_disk: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    on_disk.done("r0")
    names: list[str] = []
    during_build(monkeypatch, lambda work: names.extend(on_disk.lake.files("_staging")))
    on_disk.done("r1")
    assert {name.split("/")[1] for name in names} == {"000000001-r1"}


def test_a_commit_clears_the_stagings_of_older_bases_and_nothing_else(on_disk: Job) -> None:
    on_disk.done("r0")
    older, same, newer = (f"_staging/{number:09}-x/users/part-0.parquet" for number in (0, 1, 2))
    for name in (older, same, newer, "_staging/notes.txt"):
        on_disk.lake.write(name, "x")
    on_disk.done("s1")
    assert on_disk.lake.files("_staging").keys() == {same, newer, "_staging/notes.txt"}
    on_disk.done("r1")
    assert on_disk.lake.files("_staging").keys() == {newer, "_staging/notes.txt"}


def test_a_run_that_finds_nothing_new_reports_so_and_creates_no_ledger(on_disk: Job) -> None:
    on_disk.done("r0", "s1")
    assert list(sparkless.ledgers(on_disk.contents())) == [1]
    assert on_disk.outcome_of("s1") == "nothing new"


def test_a_run_that_was_killed_after_its_commit_gets_its_files_and_its_report_from_the_next(
    on_disk: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk.done("r0")
    with monkeypatch.context() as patch:
        patch.setattr(etl, "settle_own", interrupted)
        assert on_disk.run("r1").code == 130
    assert on_disk.lake.read("_runs/r1.json") is None and sparkless.rows(on_disk.seen(), USERS) == ["r0"]
    on_disk.done("s1")
    assert on_disk.outcome_of("r1") == "published" and on_disk.whole("r0", "r1")


def test_a_report_that_was_lost_is_written_again(on_disk: Job) -> None:
    on_disk.done("r0")
    before = on_disk.lake.read("_runs/r0.json")
    on_disk.lake.delete(["_runs/r0.json"])
    on_disk.done("s1")
    assert on_disk.lake.read("_runs/r0.json") == before


@pytest.mark.parametrize("moment", ["build", "commit"])
def test_of_two_runs_at_once_the_second_to_commit_changes_nothing_and_says_so(
    on_disk: Job, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is built, a file of its base is missing, which the other has replaced; later, the number is taken."""
    on_disk.done("r0")
    others: list[Outcome] = []
    once(monkeypatch, etl, moment, lambda: others.append(on_disk.run("r2")))
    outcome = on_disk.run("r1")
    assert outcome.code == 1 and outcome.error == f"{on_disk.output}: {OVERTAKEN}"
    assert others[0].code == 0 and others[0].says("another run is active or was killed")
    assert on_disk.lake.files("_staging") == {} and OVERTAKEN in on_disk.outcome_of("r1")
    assert on_disk.whole("r0", "r1", "r2")  # the log r1 was there when the other listed the input


def test_a_log_that_came_after_a_run_had_begun_is_not_taken_for_vanished(
    on_disk: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk.done("r0")
    once(monkeypatch, etl, "opened", lambda: on_disk.done("r2"))
    assert on_disk.run("r1").code == 0
    assert on_disk.whole("r0", "r1", "r2")


def test_a_run_whose_staging_another_clears_at_its_start_does_not_accuse_the_store(
    on_disk: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk.done("r0")
    once(monkeypatch, etl.Disk, "create", lambda: on_disk.done("r2"), when="r1/run.json")
    assert on_disk.run("r1").error == f"{on_disk.output}: {OVERTAKEN}"


def test_a_run_whose_audit_fails_because_another_has_cleared_its_staging_names_the_cause(
    on_disk: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk.done("r0")

    def fail(work: etl.Work) -> None:
        on_disk.done("r2")
        raise etl.JobError("songplays: 0 rows; the input has 1")

    during_build(monkeypatch, fail)
    assert on_disk.run("r1").error == f"{on_disk.output}: {OVERTAKEN}"


def test_a_run_that_fails_leaves_the_tables_reports_and_clears_its_staging(
    on_disk: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk.done("r0")

    def fail(work: etl.Work) -> None:
        work.lake.write(f"{work.staging}/users/part-0.parquet", "x")
        raise etl.JobError("too many bad lines")

    during_build(monkeypatch, fail)
    assert on_disk.run("r1").error == "too many bad lines"
    assert on_disk.whole("r0") and on_disk.lake.files("_staging") == {}
    assert on_disk.outcome_of("r1") == "failed: too many bad lines"


def test_an_interrupted_run_leaves_the_tables_and_the_next_clears_up(
    on_disk: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk.done("r0")
    during_build(monkeypatch, interrupted)
    assert on_disk.run("r1").code == 130
    assert on_disk.whole("r0") and on_disk.lake.files("_staging")
    on_disk.done("s1")
    assert on_disk.whole("r0", "r1") and on_disk.lake.files("_staging") == {}


def test_a_run_that_cannot_finish_after_its_commit_says_so_and_the_next_finishes_it(
    on_disk: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk.done("r0")

    def full_disk() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    once(monkeypatch, etl.Disk, "move", full_disk, when="r1.parquet")
    outcome = on_disk.run("r1")
    assert outcome.code == 1 and "the disk is full" in outcome.error and "the run has committed" in outcome.error
    on_disk.done("s1")
    assert on_disk.whole("r0", "r1")


# --- files that are not as the ledger says --------------------------------------------------------------------------


def test_a_lake_of_version_1_is_rebuilt_with_one_line_and_its_files_go(on_disk: Job) -> None:
    files = [f"{NOVEMBER}/part-0.parquet", "users/part-0.parquet", "_state/events/year=2018/month=11/part-0.parquet"]
    ledger = json.dumps({"files": dict.fromkeys(files, 2)})
    old = {**dict.fromkeys(files, "v1"), "_state/ledger.json": ledger, "_lock/000000000007.json": "{}"}
    for name, text in old.items():
        on_disk.lake.write(name, text)
    assert rebuilds(on_disk.run("r0")) == ["version 1 of this job wrote the lake"]
    assert on_disk.whole("r0") and not old.keys() & on_disk.contents().keys()


DAMAGES = ["{", "\0" * 500, "null", "", "[]", '{"number": 2}']


@pytest.mark.parametrize("options", [[], ["--full"]])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_ledger_stops_the_run_which_names_it_and_the_way_out(
    on_disk: Job, damage: str, options: list[str]
) -> None:
    on_disk.done("r0", "r1")
    on_disk.lake.write("_state/ledger/000000002.json", damage)
    before = on_disk.contents()
    outcome = on_disk.run("r2", *options)
    place = f"{on_disk.output}/_state/ledger/000000002.json"
    assert outcome.code == 1 and outcome.error == f"{place} is damaged; restore it, or choose another OUTPUT"
    assert on_disk.contents() == before


def test_a_lake_whose_newest_ledger_was_removed_stops_the_run_and_loses_nothing(on_disk: Job) -> None:
    on_disk.done("r0", "r1")
    before = on_disk.seen()
    on_disk.lake.delete(["_state/ledger/000000002.json"])
    outcome = on_disk.run("r2")
    assert outcome.code == 2 and f"{NOVEMBER}/r1.parquet" in outcome.error and on_disk.seen() == before


@pytest.mark.parametrize("options", [[], ["--full"]])
def test_a_lake_whose_ledgers_were_all_removed_is_not_rebuilt_over(on_disk: Job, options: list[str]) -> None:
    on_disk.done("r0")
    before = on_disk.seen()
    on_disk.lake.delete(on_disk.lake.files(etl.LEDGER))
    outcome = on_disk.run("r1", *options)
    place = f"{on_disk.output}/{OCTOBER}/r0.parquet (and 2 more)"
    assert outcome.code == 2 and outcome.error.startswith(f"{place}: is among the tables, but no ledger lists it")
    assert on_disk.seen() == before


@pytest.mark.parametrize("text", [None, "longer"])
def test_a_listed_file_that_is_missing_or_has_another_size_is_a_full_run_with_one_line(
    on_disk: Job, text: str | None
) -> None:
    on_disk.done("r0")
    on_disk.lake.delete([f"{OCTOBER}/r0.parquet"])
    if text:
        on_disk.lake.write(f"{OCTOBER}/r0.parquet", text)
    why = f"{OCTOBER}/r0.parquet is missing, or not as the last run left it"
    assert rebuilds(on_disk.run("s1")) == [why]
    assert on_disk.whole("r0")


@pytest.mark.parametrize("name", ["songplays/a.csv", "users/year=2018/part-0.parquet", "_state/songs/part-9.parquet"])
@pytest.mark.parametrize("options", [[], ["--full"]])
def test_a_file_among_the_tables_that_no_ledger_lists_stops_the_run_and_stays(
    on_disk: Job, name: str, options: list[str]
) -> None:
    on_disk.done("r0")
    on_disk.lake.write(name, "theirs")
    outcome = on_disk.run("r1", *options)
    assert outcome.code == 2 and outcome.error.startswith(f"{on_disk.output}/{name}: is among the tables")
    assert on_disk.lake.read(name) == "theirs" and sparkless.rows(on_disk.seen(), NOVEMBER) == ["r0"]


def test_a_first_run_stops_at_a_file_of_others(on_disk: Job) -> None:
    on_disk.lake.write("songs/music.mp3", "theirs")
    assert on_disk.run("r0").code == 2 and list(on_disk.lake.files("")) == ["songs/music.mp3"]


@pytest.mark.parametrize("name", ["users/.DS_Store", "songplays/_backup/part-0.parquet", "songs/year=1999/._x.parquet"])
def test_hidden_files_of_others_neither_count_nor_go(on_disk: Job, name: str) -> None:
    on_disk.done("r0")
    on_disk.lake.write(name, "theirs")
    outcome = on_disk.run("r1")
    assert outcome.code == 0 and rebuilds(outcome) == []
    assert on_disk.run("s2", "--full").code == 0 and on_disk.lake.read(name) == "theirs"


def test_a_replaced_file_that_comes_back_within_ten_ledgers_goes_and_later_counts_as_one_of_others(
    on_disk: Job,
) -> None:
    on_disk.done("r0", "r1")  # ledger 2 replaces November's file of r0
    for number in range(2, 13):
        on_disk.lake.write(f"{NOVEMBER}/r0.parquet", "late")
        assert on_disk.run(f"r{number}").code == (0 if number <= 11 else 2), number
        assert (f"{NOVEMBER}/r0.parquet" in on_disk.seen()) == (number > 11)


def test_other_rules_are_a_full_run_with_one_line(on_disk: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    on_disk.done("r0")
    by_day = {"PLAYS_PARTITION_BY": "year, month, day"}
    why = "plays_partition_by was 'year, month' in the last run and is 'year, month, day'"
    assert rebuilds(on_disk.run("r1", **by_day)) == [why]
    assert rebuilds(on_disk.run("r2", **by_day)) == []
    why = f"meaning was {etl.MEANING} in the last run and is -1"
    monkeypatch.setattr(etl, "MEANING", -1)
    assert rebuilds(on_disk.run("r3", **by_day)) == [why]


def test_more_than_a_hundred_changed_or_vanished_logs_are_a_full_run_with_one_line(on_disk: Job) -> None:
    many = [f"log_data/{n}.json" for n in range(101)]
    on_disk.logs += many
    on_disk.done("r0")
    on_disk.logs = [*many[1:], "log_data/r0.json"]
    assert rebuilds(on_disk.run("r1")) == []
    on_disk.logs = ["log_data/r0.json"]
    assert rebuilds(on_disk.run("r2")) == ["101 files of the input have changed or vanished"]
    assert on_disk.whole("r0", "r2")


# --- what a disk or a store may answer ------------------------------------------------------------------------------


def refused(code: str, status: int) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")


def answers(patch: pytest.MonkeyPatch, client: sparkless.Client, *answers: object) -> list:
    """What the store says to the next requests that create a ledger: an error to raise; "done" carries the request out
    before the next answer is given; None is an ordinary answer. Returns the answers that are still to be given."""
    put, left = client.put_object, list(answers)

    def put_object(**request: object) -> dict:
        if f"/{etl.LEDGER}/" in request["Key"] and left:
            while (answer := left.pop(0)) == "done":
                put(**request)
            if answer:
                raise answer
        return put(**request)

    patch.setattr(client, "put_object", put_object)
    return left


NO_ANSWER = ReadTimeoutError(endpoint_url="http://store")
BUSY = refused("ConditionalRequestConflict", 409)
TAKEN = refused("PreconditionFailed", 412)


def no_link(source: str, target: str) -> None:
    """As the system's, on a disk without hard links: first it looks whether the name is taken."""
    if os.path.exists(target):
        raise FileExistsError(errno.EEXIST, "File exists", source, None, target)
    raise PermissionError(errno.EPERM, "Operation not permitted", source, None, target)


def test_a_disk_without_hard_links_is_refused_with_the_remedy(on_disk: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", no_link)
    outcome = on_disk.run("r0")
    assert outcome.code == 1 and on_disk.seen() == {}
    assert "this disk has no hard links, which a commit needs; choose another OUTPUT" in outcome.error


def test_a_disk_without_hard_links_is_found_out_before_the_work(on_disk: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", no_link)
    during_build(monkeypatch, lambda work: pytest.fail("it works"))
    assert "may have published" not in on_disk.run("r0").error
    assert on_disk.lake.files("_staging") == {}


def test_a_store_that_ignores_if_none_match_is_found_out_before_the_work(
    on_s3: Job, client: sparkless.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = client.put_object
    monkeypatch.setattr(client, "put_object", lambda IfNoneMatch="", **request: put(**request))
    during_build(monkeypatch, lambda work: pytest.fail("it works"))
    assert "the store ignores If-None-Match, so two runs could publish at once" in on_s3.run("r0").error
    assert on_s3.lake.files("_staging") == {}


def test_a_store_without_conditional_writes_is_found_out_before_the_work(
    on_s3: Job, client: sparkless.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = client.put_object

    def put_object(**request: object) -> dict:
        if "IfNoneMatch" in request:
            raise refused("NotImplemented", 501)
        return put(**request)

    monkeypatch.setattr(client, "put_object", put_object)
    during_build(monkeypatch, lambda work: pytest.fail("it works"))
    assert "conditional writes (If-None-Match)" in on_s3.run("r0").error


@pytest.mark.parametrize(
    "said",
    [
        pytest.param([BUSY, BUSY, None], id="busy twice"),
        pytest.param([NO_ANSWER, None], id="no answer once"),
        pytest.param(["done", NO_ANSWER], id="done, but no answer"),
        pytest.param(["done", BUSY], id="done, but busy"),
        pytest.param(["done", TAKEN], id="done by the first of the client's own tries"),
        pytest.param([refused("InternalError", 500), "done", TAKEN], id="failed, then done"),
    ],
)
def test_a_commit_is_tried_until_the_answer_is_certain(
    on_s3: Job, client: sparkless.Client, said: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_s3.done("r0")
    left = answers(monkeypatch, client, *said)
    on_s3.done("r1")
    assert left == [] and on_s3.whole("r0", "r1")


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("said", [[NO_ANSWER] * 2, [BUSY] * 10], ids=["no answer", "busy"])
def test_without_a_certain_answer_a_run_fails_but_keeps_its_staging_and_the_next_run_shows(
    on_s3: Job, client: sparkless.Client, said: list, done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_s3.done("r0")
    get = client.get_object

    def not_yet(**request: object) -> dict:
        if request["Key"].endswith("/000000002.json"):
            raise refused("NoSuchKey", 404)
        return get(**request)

    with monkeypatch.context() as patch:
        left = answers(patch, client, *(["done"] if done else []), *said)
        patch.setattr(client, "get_object", not_yet)
        outcome = on_s3.run("r1")
    assert left == [] and outcome.code == 1
    assert outcome.error.endswith("this run may have published; the next run will find out")
    assert f"_staging/000000001-r1/{NOVEMBER}/r1.parquet" in on_s3.lake.files("_staging")
    on_s3.done("s1")
    runs = [ledger.run for ledger in sparkless.ledgers(on_s3.contents()).values()]
    assert runs == ["r0", "r1" if done else "s1"] and on_s3.whole("r0", "r1")


def test_a_commit_that_the_store_carries_out_late_counts(
    on_s3: Job, client: sparkless.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_s3.done("r0")
    late: list[dict] = []
    put = client.put_object

    def put_object(**request: object) -> dict:
        if request["Key"].endswith("/000000002.json"):
            late.append(request)
            raise NO_ANSWER
        return put(**request)

    with monkeypatch.context() as patch:
        patch.setattr(client, "put_object", put_object)
        assert on_s3.run("r1").code == 1
    put(**late[0])
    on_s3.done("s1")
    assert on_s3.whole("r0", "r1") and on_s3.outcome_of("r1") == "published"
