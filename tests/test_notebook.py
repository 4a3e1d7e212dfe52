"""test_code.ipynb runs top to bottom on the sample."""

from __future__ import annotations

import json

import pytest
from conftest import ROOT
from pyspark.sql import SparkSession


def test_the_notebook_runs_top_to_bottom(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(ROOT)
    cells = json.loads((ROOT / "test_code.ipynb").read_text())["cells"]
    names: dict = {"spark": spark}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert names["tables"]["songplays"].count() > 0
    assert "songplays" in capsys.readouterr().out
