"""test_code.ipynb runs on the sample and on other lakes, and the committed copy has the outputs of such a run."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
import shutil
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from unittest.mock import MagicMock

import matplotlib.image
import nbformat
import pytest
from conftest import event, play_of, song, write_lake

import etl
from tools.run_notebook import NOTEBOOK, ROOT, executed, fresh_clone

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


@pytest.fixture(scope="module", autouse=True)
def little_memory() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_SUBMIT_ARGS", "--driver-memory 1g pyspark-shell")
        yield


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> nbformat.NotebookNode:
    """The notebook after a run in a directory below the project. The run changes no file."""
    project = fresh_clone(tmp_path_factory.mktemp("clone"))
    for directory in ("output/_runs", "notebooks"):
        (project / directory).mkdir(parents=True)
    for each in (report("20181130T060000Z"), report("20181201T060000Z", "failed: the bucket does not exist")):
        (project / "output" / "_runs" / f"{each['run']}.json").write_text(json.dumps(each))
    before = files(project)
    notebook = executed(copy.deepcopy(COMMITTED), project / "notebooks")
    assert files(project) == before
    return notebook


def code_cells(notebook: nbformat.NotebookNode, tag: str = "") -> list[nbformat.NotebookNode]:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell for cell in cells if not tag or tag in cell.metadata.get("tags", [])]


def shown(cell: nbformat.NotebookNode) -> list[str]:
    """What the cell shows as text and tables, without its pictures."""
    data = [output.get("data", {"text/plain": output.get("text")}) for output in cell.outputs]
    return [each.get("text/html", each["text/plain"]) for each in data if "image/png" not in each]


def shown_rows(cell: nbformat.NotebookNode) -> list[list[str]]:
    """The rows of the table that the cell shows."""
    [table] = shown(cell)
    return [re.findall("<td>(.*?)</td>", row) for row in table.split("<tr>") if "<td>" in row]


def pictures(notebook: nbformat.NotebookNode) -> list[bytes]:
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return [base64.b64decode(each.data["image/png"]) for each in outputs if "image/png" in each.get("data", {})]


def passes(cell: nbformat.NotebookNode) -> bool:
    """Whether the cell says that all checks pass."""
    return re.fullmatch(r"(\d+) of \1 checks pass\.\n", *shown(cell)) is not None


def test_the_notebook_runs_top_to_bottom_and_shows_the_committed_answers(ran: nbformat.NotebookNode) -> None:
    for cell, committed in zip(code_cells(ran), code_cells(COMMITTED), strict=True):
        if "runs" not in cell.metadata.get("tags", []):  # the committed notebook has seen no runs
            assert shown(cell) == shown(committed), "not what the repository shows: make notebook-outputs"
    assert len(pictures(ran)) == len(pictures(COMMITTED)) == 8


def test_the_last_runs_are_shown_the_newest_first(ran: nbformat.NotebookNode) -> None:
    [cell] = code_cells(ran, "runs")
    nothing = ["NULL"] * 5
    assert shown_rows(cell) == [
        ["20181201T060000Z", "failed: the bucket does not exist", "3.8", "560", "411", "0", "2", *nothing],
        ["20181130T060000Z", "published", "3.8", "560", "411", "0", "2", "413", *nothing[1:]],
    ]


def test_all_checks_pass_on_the_sample(ran: nbformat.NotebookNode) -> None:
    assert [passes(cell) for cell in code_cells(ran, "checks")] == [True]


# Published tables, which change while the kernel lives ---------------------------------------------------------------


def code(source: str, *tags: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)})


def notebook_of(*cells: nbformat.NotebookNode) -> nbformat.NotebookNode:
    return nbformat.v4.new_notebook(cells=list(cells))


def round_of(published: bool) -> list[nbformat.NotebookNode]:
    """The notebook's code, not run yet. Of published tables without the charts, to save time."""
    cells = [code(cell.source, *cell.metadata.get("tags", [])) for cell in code_cells(COMMITTED)]
    cells[0].source += f"\nPUBLISHED = {published}"
    return [cell for cell in cells if not (published and "plt.show()" in cell.source)]


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> list[nbformat.NotebookNode]:
    """What four rounds in one kernel show, with plays by day: of an empty output; after a run of the job, with a newer
    log in the input; after the next night; and of tables built in the notebook."""
    project = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "etl.py", project)
    lake = "INPUT = data\nOUTPUT = output\nPLAYS_PARTITION_BY = year, month, day\n"
    (project / "dl.cfg").write_text(f"[AWS CREDS]\n[LAKE]\n{lake}")
    home = event(page="Home", artist=None, song=None, length=None, level="paid", itemInSession=2)
    write_lake(project / "data", [song()], [play_of(song()), event(itemInSession=1), home])
    for day in (16, 17):
        play = event(at=f"2018-11-{day}T09:00:00", song="Wanted", sessionId=day)
        (project / f"{day}.json").write_text(json.dumps(play))
    deliver, job = "_ = Path('{0}.json').rename('data/log_data/{0}.json')", "assert etl.main([]) == 0"
    empty, session = round_of(True)[:2], code("mine = etl.SparkSession.getActiveSession()")
    empty[1].metadata["tags"] = ["raises-exception"]
    first = [code(job), session, code(deliver.format(16)), *round_of(True)]
    second = [code(deliver.format(17)), code(job), *round_of(True)]
    rounds = [empty, first, second, [*round_of(False), code("assert spark is mine")]]
    executed(notebook_of(*chain(*rounds)), project)
    return [notebook_of(*cells) for cells in rounds]


def test_published_tables_that_do_not_exist_name_the_output_and_the_command_to_run(
    nights: list[nbformat.NotebookNode],
) -> None:
    error = nights[0].cells[1].outputs[-1]
    why = "no published tables, or some of their files are missing"
    assert re.fullmatch(f"/.*/output: {why}; run `make run` first, or set PUBLISHED = False", error.evalue)


def test_a_night_that_the_job_adds_is_shown_by_the_next_run_in_the_same_kernel(
    nights: list[nbformat.NotebookNode],
) -> None:
    tables = [shown_rows(*code_cells(notebook, "tables")) for notebook in nights[1:3]]
    assert [rows[0] for rows in tables] == [
        ["songplays", "2", "songplay_id", "year, month, day"],
        ["songplays", "4", "songplay_id", "year, month, day"],
    ]


def test_published_tables_pass_the_checks_also_when_the_input_has_newer_lines(
    nights: list[nbformat.NotebookNode],
) -> None:
    assert [passes(cell) for notebook in nights for cell in code_cells(notebook, "checks")] == [True] * 3


def test_published_tables_and_those_built_in_the_notebook_give_the_same_answers(
    nights: list[nbformat.NotebookNode],
) -> None:
    published, built = ([shown(cell) for cell in code_cells(notebook) if shown(cell)] for notebook in nights[2:])
    assert published == built


def test_the_songs_that_the_catalogue_lacks_are_ranked_by_plays(nights: list[nbformat.NotebookNode]) -> None:
    assert shown_rows(*code_cells(nights[3], "lacking")) == [
        ["Nobody Known", "Wanted", "200.5", "2", "1", "2018-11-17"],
        ["Nobody Known", "Nothing Known", "200.5", "1", "1", "2018-11-15"],
    ]


# Where the notebook finds the project -------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, with no project in or above it, nor on Python's path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if not Path(place, "etl.py").exists()])
    return tmp_path


def run_setup() -> dict:
    """The names that the notebook's second cell defines."""
    names: dict = {"INPUT": None, "OUTPUT": None, "PUBLISHED": False}
    [setup] = code_cells(COMMITTED, "setup")
    exec(setup.source, names)
    return names


def test_elsewhere_it_finds_the_project_beside_its_python(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(ROOT / ".venv"))
    monkeypatch.setattr(etl, "spark_session", MagicMock())
    names = run_setup()
    assert names["source"].root == str(ROOT / "data")
    assert sys.path[0] == str(ROOT)


def test_without_a_project_it_says_where_to_go(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(elsewhere / ".venv"))
    monkeypatch.delitem(sys.modules, "etl")
    with pytest.raises(FileNotFoundError, match="^etl.py is not here: `%cd` to the project's directory"):
        run_setup()


# The committed copy ---------------------------------------------------------------------------------------------------


def test_the_committed_notebook_has_run_in_order_without_an_error() -> None:
    cells = code_cells(COMMITTED)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]


def test_the_committed_notebook_is_below_600_kb() -> None:
    assert NOTEBOOK.stat().st_size < 600_000


def test_the_committed_notebook_holds_no_secret_and_no_path_of_a_machine() -> None:
    text = re.sub('"image/png": "[^"]*"', "", NOTEBOOK.read_text(encoding="utf-8"))
    assert not re.findall(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}|(?i:secret|token|password)\w*\W{1,4}=", text)
    assert not re.findall(r"file:/+\w+|/(?:home|root|tmp|Users|var|mnt|work)/\S*|[A-Z]:\\\\\w+", text)


def test_charts_have_an_opaque_light_background_so_that_a_dark_page_leaves_them_legible() -> None:
    for picture in pictures(COMMITTED):
        pixels = matplotlib.image.imread(io.BytesIO(picture))
        assert pixels.shape[2] == 3 or pixels[..., 3].min() == 1
        assert pixels[0, 0, :3].min() > 0.9
