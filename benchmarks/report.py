"""Tables from the benchmark's figures; nothing is run here. The prose of README.md stays as it is."""

from statistics import median

GB, MB = 1_000_000_000, 1_000_000
NAMES = {"job": "**the job**", "floor": "the floor", "duckdb": "DuckDB", "usual": "the usual script"}
# What a run has measured, by its key in results.json: title, unit, form. S3's operations show under their own names.
COLUMNS = {
    "wall": ("seconds", 1, ".1f"),
    "cpu": ("core seconds", 1, ".1f"),
    "memory": ("largest process, GB", GB, ".1f"),
    "bytes": ("MB of Parquet", MB, ",.1f"),
}
# A figure of one run over the same figure of another in the same round, or of one run alone: the limit of its median.
GOALS = {
    "comparison": {("wall", "job", "floor"): "at most 3.8", ("cpu", "job", "floor"): "",
                   ("wall", "usual", "job"): "at least 2.2", ("wall", "job", "duckdb"): ""},
    "growth": {("wall", "job 1x", "floor 1x"): "at most 3.8", ("wall", "job 10x", "floor 10x"): "at most 4.8",
               ("wall", "job 10x", "job 1x"): "at most 10.5", ("wall", "job 10x", "duckdb 10x"): ""},
    "night": {("wall", "a year", "no history"): "at most 1.2",
              ("wall", "a year, end of month", "no history"): "at most 1.2",
              ("wall", "three years", "a month"): "at most 1.15",
              ("wall", "a year, by day", "no history, by day"): "at most 1.2",
              ("wall", "a year, in full", "a year"): ""},
    "sample": {("wall", "nothing new"): "at most 2", ("wall", "in full, the second time"): "at most 12"},
    "tiny": {("wall", "14,896 song files", "one song file"): "at most 2"},
    "s3": {("requests", "in full"): "at most 2200", ("requests", "a night"): "at most 300"},
    "against": {("wall", "job", "the other"): "", ("cpu", "job", "the other"): ""},
}  # fmt: skip


def rendered(text: str, results: dict) -> str:
    """The text with each section's figures between its markers, `<!-- figures: NAME -->` and `<!-- end -->`."""
    for name in GOALS:
        lines = section(name, results[name]) if name in results else ["*Not measured yet.*"]
        before, begin, rest = text.partition(f"<!-- figures: {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not end:
            raise ValueError(f"README.md: add <!-- figures: {name} --> and <!-- end -->, between which figures can go")
        text = "".join([before, begin, *(f"{line}\n" for line in lines), end, after])
    return text


def section(name: str, measured: dict) -> list[str]:
    """The runs, the ratios between them, the job's stages, and where all that was measured."""
    runs = measured["runs"]
    tables = [run_table(runs), ratio_table(runs, GOALS[name]), stage_table(runs)]
    rounds = f"rounds: {max(run['round'] for run in runs)}"
    about = "; ".join([measured["data"], rounds, measured["machine"]])
    return [line for table in tables if table for line in (*table, "")] + [about[0].upper() + about[1:] + "."]


def run_table(runs: list[dict]) -> list[str]:
    """A line for each program: the median of its rounds, with the least and the most of the seconds."""
    keys = list(dict.fromkeys(key for run in runs for key in run if key not in ("program", "round", "stages")))
    lines = ["| run |" + "".join(f" {COLUMNS.get(key, [key])[0]} |" for key in keys), "|---|" + "---:|" * len(keys)]
    for program in dict.fromkeys(run["program"] for run in runs):
        mine = [run for run in runs if run["program"] == program]
        cells = [cell([run[key] for run in mine if key in run], key) for key in keys]
        lines.append(f"| {NAMES.get(program, program)} | {' | '.join(cells)} |")
    return lines


def cell(values: list[float], key: str) -> str:
    _, unit, form = COLUMNS.get(key, (key, 1, ",.0f"))
    values = [value / unit for value in values] if key == "wall" else [median(values) / unit] if values else []
    return spread(values, form) if values else "-"


def spread(values: list[float], form: str) -> str:
    """The median, and the least and the most of more than one: "1.5 (1.4-1.7)"."""
    middle = f"{median(values):{form}}"
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}}-{max(values):{form}})"


def ratio_table(runs: list[dict], goals: dict[tuple, str]) -> list[str]:
    """A line for each figure that was measured. What slows the machine for a while slows both runs of a round."""
    lines = []
    for (key, *programs), limit in goals.items():
        figures = [{run["round"]: run[key] for run in runs if run["program"] == program} for program in programs]
        rounds = sorted(set.intersection(*map(set, figures)))
        values = [figures[0][n] / (figures[1][n] if len(figures) > 1 else 1) for n in rounds]
        if values:
            title, _, form = COLUMNS.get(key, (key, 1, ",.0f"))
            words = f"{' / '.join(programs)}, {title}", spread(values, ".2f" if len(figures) > 1 else form)
            lines.append(f"| {' | '.join(words)} | {verdict(median(values), limit)} |")
    return ["| in the same round | measured | goal |", "|---|---:|---|", *lines] if lines else []


def verdict(value: float, limit: str) -> str:
    """The limit, and whether the value meets it; nothing where there is no limit."""
    if not limit:
        return ""
    number = float(limit.split()[-1])
    met = value <= number if limit.startswith("at most") else value >= number
    return f"{limit}: {'met' if met else 'missed'}"


def stage_table(runs: list[dict]) -> list[str]:
    """The job's stages by the clock, from its own report. Some run side by side, so the shares may exceed the whole."""
    jobs = [run for run in runs if run["program"] == "job" and run.get("stages")]
    whole = median(run["wall"] for run in jobs) if jobs else 0
    stages = {name: median(run["stages"].get(name, 0) for run in jobs) for run in jobs for name in run["stages"]}
    lines = [f"| {name} | {seconds:.1f} | {seconds / whole:.0%} |" for name, seconds in stages.items()]
    return ["| stage of the job | seconds | of the whole run |", "|---|---:|---:|", *lines] if jobs else []
