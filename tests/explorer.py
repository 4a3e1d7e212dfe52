"""Every interleaving of several runs of the job's own code, on a lake in memory, one storage call at a time.

A run is the real etl.run on a lake that asks for each answer (Steps), so a run is where its answers brought it. To find
what it calls next, it is started again, gets the answers that it got before, and is stopped by Paused at the next call.
A state is the lake and where each run is; equal states are one. The first way to a state that is found is a shortest.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import sparkless
from sparkless import Lake

import etl

INPUT = "_input"  # of the lake's dict: where files are delivered
ERROR = "no answer"  # instead of an answer: the store fails
UNUSED = {*etl.TABLES, *(table.name for table in (etl.EVENTS, etl.SONG_LINES, etl.VERSIONS))} - {"songplays", "users"}
SETTINGS = etl.Settings("in", "lake", max_shrink=1.0)
# These keep nothing across a storage call but their locals and the error that is handled. So where they are called and
# what these are says where a run is; of a function that they call, all answers since the call do.
PLAIN = ("run", "opened")


class Paused(BaseException):
    """Stops a run at a call that has no answer yet."""


class Steps:
    """A lake of which each call is a step, and of a move or a delete each file."""

    root = "lake"

    def __init__(self, ask: Callable, disk: bool) -> None:
        self.ask, self.disk = ask, disk

    def __repr__(self) -> str:
        return "lake"

    def step(self, *call: str) -> object:
        answer = self.ask(call)
        if answer is ERROR:
            raise etl.StoreError("lake", OSError(ERROR))
        return answer

    def files(self, below: str) -> dict[str, etl.File]:
        return {} if below in UNUSED else {name: etl.File(size, "") for name, size in self.step("list", below)}

    def read(self, name: str) -> str | None:
        return self.step("read", name)

    def write(self, name: str, text: str) -> None:
        self.step("write", name, text)

    def create(self, name: str, text: str, draft: str) -> bool:
        if self.disk:
            self.write(draft, text)
        return self.step("create", name, text)

    def move(self, moves: dict[str, str]) -> bool:
        kind = "move" if self.disk else "copy"
        moved = [self.step(kind, source, target) for source, target in moves.items()]
        return all(moved)

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            self.step("delete", name)


def outcome(run: str, ask: Callable, disk: bool) -> str:
    """The whole run, each of its calls answered by `ask`. A run whose name begins with f is one with --full.

    When a run lists the logs, a file that is named after it has just been delivered.
    """
    lake = Steps(ask, disk)
    return sparkless.outcome(run, SETTINGS, lambda: lake.step("deliver", run), lake, run.startswith("f"))


def alone(lake: Lake, run: str, disk: bool) -> tuple[str, list[Lake]]:
    """A run without others: its outcome, and the lakes after each of its changes, from the first to the last."""
    lakes = [lake]

    def ask(call: tuple) -> object:
        lake, answer = done(lakes[-1], call)
        if lake is not lakes[-1]:
            lakes.append(lake)
        return answer

    return outcome(run, ask, disk), lakes


def first_lake(disk: bool, *runs: str) -> Lake:
    """The lake after these runs, one after another."""
    lake = {**sparkless.FOREIGN, f"{INPUT}/log_data/r0.json": ""}
    for run in runs:
        how, lakes = alone(lake, run, disk)
        assert how == "done", how
        lake = lakes[-1]
    return lake


def done(lake: Lake, call: tuple) -> tuple[Lake, object]:
    """The lake after a call, and the answer. A lake is never changed: it is the same one or another."""
    kind, name, *rest = call
    if kind == "list":
        return lake, tuple(sorted((found, len(text)) for found, text in lake.items() if found.startswith(f"{name}/")))
    if kind == "read":
        return lake, lake.get(name)
    if kind == "write":
        return {**lake, name: rest[0]}, None
    if kind == "create":
        return (lake, False) if name in lake else ({**lake, name: rest[0]}, True)
    if kind == "deliver":  # the runs that only put right what others left bring nothing
        lake = lake if name.startswith("s") else {**lake, f"{INPUT}/log_data/{name}.json": ""}
        return lake, tuple(sorted(found[len(INPUT) + 1 :] for found in lake if found.startswith(INPUT)))
    if name not in lake:  # move, copy, delete
        return lake, False if rest else None
    after = {**lake, **dict.fromkeys(rest, lake[name])}
    if kind != "copy":
        del after[name]
    return after, True if rest else None


class Runs:
    """Where runs can be, by number, and what leads from one place to another."""

    def __init__(self, disk: bool, merge: bool) -> None:
        self.disk, self.merge = disk, merge
        self.numbers: dict[tuple, int] = {}
        self.call: list[tuple] = []  # what the run calls next; ("end", outcome) if it has ended
        self.way: list[tuple[str, tuple]] = []  # the run, and its answers so far
        self.next: list[dict] = []  # answer -> number

    def at(self, run: str, answers: tuple = ()) -> int:
        """The number of where a run is after these answers."""
        asked, since, last = 0, 0, None

        def ask(call: tuple) -> object:
            nonlocal asked, since, last
            plain, others = frames()
            if (where := [frame.f_lasti for frame in plain]) != last:
                since, last = asked, where
            if asked == len(answers):
                facts = [{name: value for name, value in frame.f_locals.items() if name != "since"} for frame in plain]
                inner = [(frame.f_code.co_name, frame.f_lasti) for frame in others]
                place = re.sub(" at 0x[0-9a-f]+", "", repr((where, facts, inner, sys.exc_info()[1])))
                raise Paused(call, place, answers[since:])
            asked += 1
            return answers[asked - 1]

        try:
            call = ("end", outcome(run, ask, self.disk))
            place = (run, call)
        except Paused as paused:
            call, *place = paused.args
            place = (run, call, *place) if self.merge else (run, answers)
        if place not in self.numbers:
            self.numbers[place] = len(self.call)
            self.call.append(call), self.way.append((run, answers)), self.next.append({})
        return self.numbers[place]

    def after(self, number: int, answer: object) -> int:
        if answer not in self.next[number]:
            run, answers = self.way[number]
            self.next[number][answer] = self.at(run, (*answers, answer))
        return self.next[number][answer]


def frames() -> tuple[list, list]:
    """The frames from etl.run to here: those of PLAIN functions, and the others."""
    frame, found = sys._getframe(2), []
    while not found or found[-1].f_code is not etl.run.__code__:
        found.append(frame)
        frame = frame.f_back
    found.reverse()
    plain = next((n for n, frame in enumerate(found) if frame.f_code.co_name not in PLAIN), len(found))
    return found[:plain], found[plain:]


class State(NamedTuple):
    lake: int
    runs: tuple[int, ...]
    faults: int  # that may still happen
    others: int  # runs that may still happen from start to end without a pause
    late: tuple = ()  # a create that the store has not answered and may still carry out


@dataclass
class Explorer:
    """All that a few runs can do. `person`: what may happen to the lake by hand, once, in place of a fault."""

    names: tuple[str, ...]
    lake: Lake
    disk: bool = False
    faults: int = 0
    failing: tuple[str, ...] = ("create",)  # the calls that may get no answer, whether they are carried out or not
    late: bool = False  # a create without an answer may also be carried out later
    others: int = 0  # runs that happen from start to end without a pause, at any moment
    killed: bool = True  # the others may also be killed after any change
    person: Callable[[Lake], Lake] | None = None
    merge: bool = True
    check: Callable[[Lake, list], Iterable[str]] = sparkless.problems
    heal: Callable[[Lake, bool], Iterable[str]] | None = None  # None: not_healed after a run that has no input
    found: dict[str, str] = field(default_factory=dict)  # kind of problem -> the problem, and a way to it

    def __post_init__(self) -> None:
        self.runs, self.lakes, self.numbers = Runs(self.disk, self.merge), [], {}
        self.heal = self.heal or healed
        self.steps: dict[tuple, list] = {}
        self.checked: set[tuple] = set()
        self.start = State(self.number(self.lake), tuple(map(self.runs.at, self.names)), self.faults, self.others)
        self.parents: dict[State, tuple[State, str] | None] = {self.start: None}

    def number(self, lake: Lake) -> int:
        key = frozenset(lake.items())
        if key not in self.numbers:
            self.numbers[key] = len(self.lakes)
            self.lakes.append(lake)
        return self.numbers[key]

    def all(self, limit: float = float("inf")) -> None:
        """Visits each state once, near ones first, but not many more than the limit."""
        queue = [self.start]
        for state in queue:  # grows
            self.visit(state)
            for following, label in self.following(state) if len(queue) < limit else ():
                if following not in self.parents:
                    self.parents[following] = (state, label)
                    queue.append(following)

    def walks(self, count: int, seed: int) -> None:
        """Visits what lies on this many random ways from the start to an end, where little goes wrong."""
        dice = random.Random(seed)
        for _ in range(count):
            state = self.start
            while ways := list(self.following(state)):
                usual = [1 if after[2:] == state[2:] else 0.02 for after, _ in ways]
                before, (state, label) = state, dice.choices(ways, usual)[0]
                self.parents.setdefault(state, (before, label))
                self.visit(state)

    def following(self, state: State) -> Iterator[tuple[State, str]]:
        """The states that are one step away, and the steps as text."""
        for at, place in enumerate(state.runs):
            alike = at and self.names[at][0] == self.names[at - 1][0]
            if alike and state.runs[at - 1 : at + 1] == self.start.runs[at - 1 : at + 1]:
                continue  # alike runs start in order
            call = self.runs.call[place]
            if call[0] != "end":
                for lake, answer, fault, late, label in self.step(state.lake, call):
                    if fault <= state.faults and not (late and state.late):
                        runs = (*state.runs[:at], self.runs.after(place, answer), *state.runs[at + 1 :])
                        after = State(lake, runs, state.faults - fault, state.others, late or state.late)
                        yield after, f"{self.names[at]} {label}"
        if state.late:
            lake, carried = done(self.lakes[state.lake], state.late)
            yield state._replace(lake=self.number(lake), late=()), f"late {state.late[:2]} = {carried}"
        if self.person and state.faults:
            lake = self.number(self.person(self.lakes[state.lake]))
            if lake != state.lake:
                yield state._replace(lake=lake, faults=state.faults - 1), "a person"
        if state.others:
            for lake, label in self.alone(state.lake, f"a{state.others}"):
                yield state._replace(lake=lake, others=state.others - 1), label

    def step(self, lake: int, call: tuple) -> list[tuple]:
        """What the store may do at a call: (lake, answer, faults, late create, text) for each."""
        if (lake, call) not in self.steps:
            text = " ".join(call[: 3 if call[0] in ("copy", "move") else 2])
            after, answer = done(self.lakes[lake], call)
            after = self.number(after)
            shown = "" if answer is None or call[0] in ("list", "read", "deliver") else f" = {answer}"
            ways = [(after, answer, 0, (), text + shown)]
            if call[0] in self.failing and self.faults:
                ways += [(lost, ERROR, 1, (), f"{text} = error") for lost in {lake, after}]
                if self.late and call[0] == "create":
                    ways.append((lake, ERROR, 1, call, f"{text} = error, and it may come late"))
            self.steps[lake, call] = ways
        return self.steps[lake, call]

    def alone(self, lake: int, run: str) -> list[tuple[int, str]]:
        """The lakes that a run alone may leave: it ends, or is killed after any of its changes."""
        if (lake, run) not in self.steps:
            how, lakes = alone(self.lakes[lake], run, self.disk)
            if how != "done":
                self.found.setdefault("a run that is alone fails", how)
            last = len(lakes) - 1
            texts = {n: f"{run} alone, killed after {n} changes" for n in range(1, last) if self.killed}
            texts[last] = f"{run} alone: {how}"
            self.steps[lake, run] = [(self.number(lakes[n]), text) for n, text in texts.items()]
        return self.steps[lake, run]

    def visit(self, state: State) -> None:
        """Notes what is wrong there, or would be after one more run if all others stopped there for good."""
        ended = tuple(place for place in state.runs if self.runs.call[place][0] == "end")
        calm = state.faults == self.faults
        if (state.lake, ended, calm) in self.checked:
            return
        self.checked.add((state.lake, ended, calm))
        lake, ends = self.lakes[state.lake], [(self.runs.way[n][0], self.runs.call[n][1]) for n in ended]
        wrong = [*self.check(lake, ends)]
        if calm:
            wrong += [f"a run fails without a fault: {how}" for _, how in ends if not how.startswith(("done", "lost"))]
        if state.lake not in self.checked:
            self.checked.add(state.lake)
            wrong += self.heal(lake, self.disk)
        for text in wrong:
            kind = text.split(":")[0]
            if kind not in self.found:
                self.found[kind] = "\n    ".join([text, *self.way_to(state)])

    def way_to(self, state: State) -> list[str]:
        way = []
        while self.parents[state]:
            state, label = self.parents[state]
            way.append(label)
        return way[::-1]


def healed(lake: Lake, disk: bool) -> Iterator[str]:
    how, lakes = alone(lake, "s1", disk)
    if how != "done":
        yield f"when all runs have stopped, the next one does not succeed: {how}"
    else:
        yield from (f"after one more run, {text}" for text in sparkless.not_healed(lake, lakes[-1]))
