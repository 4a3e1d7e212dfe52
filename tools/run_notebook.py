"""Runs test_code.ipynb on the sample and keeps what it shows: make notebook-outputs.

It runs in an empty directory with the sample and dl.cfg beside it, so that what it shows is the same on every machine.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "test_code.ipynb"


def fresh_clone(directory: Path) -> Path:
    """The directory with what the notebook reads in it, and no output of an earlier run."""
    shutil.copy(ROOT / "dl.cfg", directory)
    (directory / "data").symlink_to(ROOT / "data")
    return directory


def executed(directory: Path) -> nbformat.NotebookNode:
    """The notebook, run top to bottom in the directory by this Python; an error in a cell is raised."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("spark.stop()"))  # a kernel that is killed leaves Spark to complain
    # No kernel that is registered on this machine: its Python may be another one, without Spark.
    kernel = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    client = NotebookClient(notebook, km=kernel, timeout=600, record_timing=False)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable}
    asyncio.run(client.async_execute(cwd=str(directory), env=environment, cleanup_kc=True))
    notebook.cells.pop()
    for cell in notebook.cells:
        if cell.cell_type == "code":  # Spark's first words, which are other ones on every machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def main() -> int:
    with tempfile.TemporaryDirectory() as directory:
        notebook = executed(fresh_clone(Path(directory)))
    nbformat.write(notebook, NOTEBOOK)
    print(f"{NOTEBOOK.name} shows what it gives on the sample, {NOTEBOOK.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
