"""Tables and a plot from the benchmark's figures; nothing is run here. The prose of README.md is left as it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

NAMES = {
    "job": "**the job**, etl.py",
    "floor": "the floor: Spark, one read to nothing",
    "duckdb": "DuckDB",
    "polars": "Polars",
    "usual": "the usual script",
}
# What is asked of a ratio: at most so much, or at least.
RATIOS = {
    ("job", "floor"): "at most 1.6",
    ("usual", "job"): "at least 6",
    ("job", "duckdb"): "at most 3",
    ("job", "polars"): "",
}
GB, MB = 1_000_000_000, 1_000_000


def by_program(runs: Iterable[dict]) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for run in runs:
        found.setdefault(run["program"], []).append(run)
    return found


def middle(runs: list[dict], name: str) -> float:
    return median(run[name] for run in runs)


def spread(values: list[float], form: str) -> str:
    """The median, and the least and the most of more than one: "1.5 (1.4-1.7)"."""
    if len(values) == 1:
        return f"{values[0]:{form}}"
    return f"{median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


def paired(runs: list[dict], above: str, below: str, of: str = "wall") -> list[float]:
    """The ratio of two programs' seconds in each round: what slows the machine for a while slows both."""
    programs = by_program(runs)
    first, second = ({run["round"]: run[of] for run in programs.get(name, [])} for name in (above, below))
    return [first[number] / second[number] for number in sorted(first.keys() & second.keys())]


def comparison(section: dict) -> list[str]:
    runs = section["runs"]
    ratios = [
        f"| {above} / {below} | {spread(values, '.2f')} | {spread(paired(runs, above, below, 'cpu'), '.2f')}"
        f" | {goal}{verdict(median(values), goal)} |"
        for (above, below), goal in RATIOS.items()
        if (values := paired(runs, above, below))
    ]
    head = ["| in the same round | seconds | core seconds | goal for the seconds |", "|---|---:|---:|---|"]
    return [
        *program_table(section),
        "",
        *([*head, *ratios, ""] if ratios else []),
        "![seconds and memory of each program](bench.png)",
        "",
        *told(section),
    ]


def program_table(section: dict) -> list[str]:
    data, cores = section["data"], section["machine"]["cores"]
    lines = [
        "| program | seconds | core seconds | peak memory, GB | files | largest, MB | all, MB | events/s and core"
        " | MB of JSON/s and core |",
        "|---|" + "---:|" * 8,
    ]
    for name, runs in by_program(section["runs"]).items():
        wall = middle(runs, "wall")
        output = [f"{middle(runs, 'files'):,.0f}", *(f"{middle(runs, key) / MB:,.1f}" for key in ("largest", "bytes"))]
        rates = [f"{data['events'] / wall / cores:,.0f}", f"{data['bytes'] / MB / wall / cores:.1f}"]
        cells = [spread([run["wall"] for run in runs], ".1f"), f"{middle(runs, 'cpu'):.1f}"]
        memory = f"{middle(runs, 'memory') / GB:.1f}"
        output = output if middle(runs, "files") else ["-"] * 3
        lines.append(f"| {NAMES[name]} | {' | '.join([*cells, memory, *output, *rates])} |")
    return lines


def verdict(value: float, goal: str) -> str:
    """What follows a goal in the table: ": met" or ": missed"; nothing where there is no goal."""
    if not goal:
        return ""
    limit = float(goal.split()[-1])
    return ": met" if (value <= limit if goal.startswith("at most") else value >= limit) else ": missed"


def growth(section: dict) -> list[str]:
    """Seconds per event at both sizes, the ratio in each round, and what an event more costs each program."""
    head = "| program | events | MB of JSON | seconds | s per million events | peak memory, GB |"
    lines, runs, more = [head, "|---|" + "---:|" * 5], by_program(section["runs"]), []
    for name, size in runs.items():
        events, wall = size[0]["events"], middle(size, "wall")
        cells = f"{events:,} | {size[0]['input'] / MB:,.0f} | {spread([run['wall'] for run in size], '.1f')}"
        memory = f"{middle(size, 'memory') / GB:.1f}"
        lines.append(f"| {NAMES[name.split()[0]]} | {cells} | {wall / events * 1e6:.2f} | {memory} |")
    for program in dict.fromkeys(name.split()[0] for name in runs):
        small, large = runs[f"{program} 1x"], runs[f"{program} 10x"]
        seconds = middle(large, "wall") - middle(small, "wall")
        more.append(f"{NAMES[program]} {seconds / (large[0]['events'] - small[0]['events']) * 1e6:.2f} s")
    factor = runs["job 10x"][0]["events"] / runs["job 1x"][0]["events"]
    ratios = [ratio / factor for ratio in paired(section["runs"], "job 10x", "job 1x")]
    goal = "at most 1.05"
    told_ratio = f"Seconds per event of the job, large over small: **{spread(ratios, '.2f')}**; asked is {goal}"
    each = f"Beyond the smaller lake a million events cost {', '.join(more)}."
    return [*lines, "", f"{told_ratio}{verdict(median(ratios), goal)}. {each}", "", *told(section)]


def tiny(section: dict) -> list[str]:
    lines = ["| song files | seconds | core seconds | peak memory, GB |", "|---:|" + "---:|" * 3]
    for runs in by_program(section["runs"]).values():
        cells = f"{spread([run['wall'] for run in runs], '.1f')} | {middle(runs, 'cpu'):.1f}"
        lines.append(f"| {runs[0]['songs']:,} | {cells} | {middle(runs, 'memory') / GB:.1f} |")
    ratios, goal = paired(section["runs"], "many", "one"), "at most 2"
    words = f"Many files over one with the same rows: **{spread(ratios, '.2f')}**"
    return [*lines, "", f"{words}; asked is {goal}{verdict(median(ratios), goal)}.", "", *told(section)]


def night(section: dict) -> list[str]:
    """One more day by the history before it, and the ratios that are asked of it."""
    head = "| the day is added to | seconds | core seconds | read by Spark, MB | files of the lake | new | retired |"
    lines = [head, "|---|" + "---:|" * 6]
    names = {"nothing": "an empty lake", "all": "a year, all of it read again (`--full`)"}
    for name, runs in by_program(section["runs"]).items():
        cells = f"{spread([run['wall'] for run in runs], '.1f')} | {middle(runs, 'cpu'):.1f}"
        files = " | ".join(f"{middle(runs, key):,.0f}" for key in ("files", "new", "retired"))
        lines.append(f"| {names.get(name, name)} | {cells} | {middle(runs, 'read') / MB:,.1f} | {files} |")
    asked = {("a year", "nothing"): "at most 1.3", ("three years", "a month"): "at most 1.1", ("all", "a year"): ""}
    words = [
        f"{names.get(above, above)} over {names.get(below, below)}: **{spread(ratios, '.2f')}**"
        + (f", asked is {goal}{verdict(median(ratios), goal)}" if goal else "")
        for (above, below), goal in asked.items()
        if (ratios := paired(section["runs"], above, below))
    ]
    day = f"The day is {section['runs'][0]['json'] / MB:.1f} MB of JSON. "
    return [*lines, "", day + "Seconds, " + "; ".join(words) + ".", "", *told(section)]


def told(section: dict) -> list[str]:
    """The data and the machine behind a table, in a sentence each."""
    machine, data = section["machine"], section["data"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    files = f"{data['events']:,} events in {data['days']:,} log files, {data['songs']:,} songs"
    rounds = max(run["round"] for run in section["runs"])
    rounds = f"{rounds} rounds" if rounds > 1 else "1 round"
    return [
        f"{files}, {data['bytes'] / MB:,.0f} MB of JSON; {rounds}; driver heap {section['heap']}.",
        f"{machine['cores']} cores of {machine['processor']}, {machine['memory'] / GB:.0f} GB; {versions}.",
    ]


SECTIONS: dict[str, Callable[[dict], list[str]]] = {
    "comparison": comparison,
    "growth": growth,
    "night": night,
    "tiny": tiny,
}


def rendered(text: str, results: dict) -> str:
    """The text with each section's figures between its markers, `<!-- figures: NAME -->` and `<!-- end -->`."""
    for name, section in SECTIONS.items():
        lines = section(results[name]) if name in results else ["*Not measured yet.*"]
        inside = "\n".join([*lines, ""])
        text, found = re.subn(
            rf"(<!-- figures: {name} -->\n).*?(<!-- end -->)",
            lambda match, inside=inside: match.group(1) + inside + match.group(2),
            text,
            flags=re.S,
        )
        if not found:
            raise ValueError(f"no markers for {name}: <!-- figures: {name} --> and <!-- end -->")
    return text


# Mid-tones on no background: they are read on white paper and on a dark screen.
INK, OURS, OTHERS = "#7d8590", "#e8710a", "#4a90c2"


def plot(section: dict, path: Path) -> None:
    """Seconds and memory of each program as bars; the thin lines go from the least to the most."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = by_program(section["runs"])
    labels = {"job": "the job", "floor": "Spark's floor", "usual": "the usual script"}
    with pyplot.rc_context({"text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}):
        figure, axes = pyplot.subplots(1, 2, figsize=(9, 0.6 + 0.45 * len(runs)), sharey=True, layout="constrained")
        for axis, (name, scale, title) in zip(
            axes, (("wall", 1, "seconds"), ("memory", GB, "peak memory, GB")), strict=True
        ):
            bars(axis, {labels.get(key, NAMES[key]): [run[name] / scale for run in each] for key, each in runs.items()})
            axis.set_title(title, fontsize=11)
        axes[0].invert_yaxis()
        figure.savefig(path, dpi=150, transparent=True, metadata={"Software": None})
        pyplot.close(figure)


def bars(axis, values: dict[str, list[float]]) -> None:
    middles = [median(each) for each in values.values()]
    errors = [[m - min(each) for m, each in zip(middles, values.values(), strict=True)],
              [max(each) - m for m, each in zip(middles, values.values(), strict=True)]]  # fmt: skip
    colours = [OURS if name == "the job" else OTHERS for name in values]
    axis.barh(list(values), middles, xerr=errors, color=colours, ecolor=INK, height=0.6)
    for position, each in enumerate(values.values()):
        axis.text(max(each), position, f"  {median(each):.1f}", va="center", fontsize=9)
    axis.set_xlim(0, max(max(each) for each in values.values()) * 1.15)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    axis.grid(axis="x", color=INK, alpha=0.25)
    axis.set_axisbelow(True)
