"""test_code.ipynb runs top to bottom on the sample, and shows what the repository's copy shows."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import nbformat
import pytest
from conftest import ROOT
from pyspark.sql import SparkSession

from tools.run_notebook import NOTEBOOK, executed, fresh_clone

COMMITTED = nbformat.read(NOTEBOOK, as_version=4)


def report(run: str, outcome: str = "published", plays: int = 413) -> dict:
    """What a run of the job leaves in OUTPUT/_runs."""
    return {
        "run": run,
        "outcome": outcome,
        "started": "2018-11-30T06:00:00Z",
        "seconds": {"read": 1.25, "songplays": 2.5},
        "lines": {"log_data": {"lines": 560, "accepted": 411, "duplicates": 0, "no_play": 147, "quarantined": 2}},
        "tables": {"songplays": {"rows": plays, "files": 2, "bytes": 16617}} if outcome == "published" else {},
    }


def files(directory: Path) -> set[Path]:
    return {path.relative_to(directory) for path in directory.rglob("*")}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory to run in, with the reports of two runs."""
    directory = fresh_clone(tmp_path_factory.mktemp("clone"))
    (directory / "output" / "_runs").mkdir(parents=True)
    for each in (report("20181130T060000Z"), report("20181201T060000Z", "failed: the bucket does not exist")):
        (directory / "output" / "_runs" / f"{each['run']}.json").write_text(json.dumps(each))
    return directory


@pytest.fixture(scope="module")
def ran(directory: Path) -> Iterator[nbformat.NotebookNode]:
    """The notebook after a run in the directory, in which the run changed nothing."""
    before = files(directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_SUBMIT_ARGS", "--driver-memory 1g pyspark-shell")
        notebook = executed(directory)
    assert files(directory) == before
    yield notebook


def code_cells(notebook: nbformat.NotebookNode, tag: str = "") -> list[nbformat.NotebookNode]:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell for cell in cells if not tag or tag in cell.metadata.get("tags", [])]


def shown(cell: nbformat.NotebookNode) -> list[str]:
    """What the cell says in words and tables, without its pictures."""
    data = [output.get("data", {"text/plain": output.get("text")}) for output in cell.outputs]
    return [each.get("text/html", each["text/plain"]) for each in data if "image/png" not in each]


def pictures(notebook: nbformat.NotebookNode) -> list[bytes]:
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return [base64.b64decode(each.data["image/png"]) for each in outputs if "image/png" in each.get("data", {})]


def test_the_notebook_runs_top_to_bottom_and_shows_the_committed_answers(ran: nbformat.NotebookNode) -> None:
    for cell, committed in zip(code_cells(ran), code_cells(COMMITTED), strict=True):
        if "runs" not in cell.metadata.get("tags", []):  # the committed notebook has seen no runs
            assert shown(cell) == shown(committed), "not what the repository shows: make notebook-outputs"
    assert len(pictures(ran)) == len(pictures(COMMITTED)) >= 8


def test_the_last_runs_are_shown_the_newest_first(ran: nbformat.NotebookNode) -> None:
    [cell] = code_cells(ran, "runs")
    [table] = shown(cell)
    runs = [re.findall("<td>(.*?)</td>", row) for row in table.split("<tr>") if "<td>" in row]
    nothing = ["NULL"] * 5
    assert runs == [
        ["20181201T060000Z", "failed: the bucket does not exist", "3.8", "560", "411", "0", "2", *nothing],
        ["20181130T060000Z", "published", "3.8", "560", "411", "0", "2", "413", *nothing[1:]],
    ]


def test_every_promise_of_the_tables_is_kept(ran: nbformat.NotebookNode) -> None:
    said = " ".join(text for cell in code_cells(ran) for text in shown(cell))
    assert re.search(r"(\d+) of \1 promises are kept", said)


def test_a_spark_that_is_there_already_is_used(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names: dict = {"spark": spark}
    try:
        for cell in code_cells(COMMITTED)[:2]:
            exec(cell.source, names)
        assert names["spark"] is spark
    finally:
        for option in ("enabled", "maxNumRows", "truncate"):
            spark.conf.unset(f"spark.sql.repl.eagerEval.{option}")


# The copy in the repository ----------------------------------------------------------------------------------------


def test_the_committed_notebook_has_run_in_order_without_an_error() -> None:
    cells = code_cells(COMMITTED)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]


def test_the_committed_notebook_is_below_1_mb() -> None:
    assert NOTEBOOK.stat().st_size < 1_000_000


def test_the_committed_notebook_holds_no_secret_and_no_path_of_a_machine() -> None:
    text = re.sub('"image/png": "[^"]*"', "", NOTEBOOK.read_text(encoding="utf-8"))
    assert not re.findall(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}|(?i:secret|token|password)\w*\W{1,4}=", text)
    assert not re.findall(r"file:/+\w+|/(?:home|root|tmp|Users|var|mnt|work)/\S*|[A-Z]:\\\\\w+", text)


def test_the_charts_have_a_ground_of_their_own_so_that_a_dark_page_leaves_them_legible() -> None:
    for picture in pictures(COMMITTED):
        pixels = matplotlib.image.imread(io.BytesIO(picture))
        assert pixels.shape[2] == 3 or pixels[..., 3].min() == 1
        assert pixels[0, 0, :3].min() > 0.9
