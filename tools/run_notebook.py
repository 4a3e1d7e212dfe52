"""Runs test_code.ipynb on the sample and saves its outputs: make notebook-outputs.

The notebook runs in a new directory with only what it reads. So its outputs are the same on every machine.
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
    """The directory, with what the notebook reads in it and no output of a run."""
    for name in ("etl.py", "dl.cfg"):
        shutil.copy(ROOT / name, directory)
    (directory / "data").symlink_to(ROOT / "data")
    return directory


def executed(notebook: nbformat.NotebookNode, directory: Path) -> nbformat.NotebookNode:
    """The notebook, run in the directory by this Python. CellExecutionError if a cell fails."""
    notebook.cells.append(nbformat.v4.new_code_cell("spark.stop()"))  # else Spark complains when the kernel ends
    # Not a kernel that is registered on this machine: its Python may lack Spark.
    kernel = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    client = NotebookClient(notebook, km=kernel, timeout=600, record_timing=False)
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYSPARK_PYTHON": sys.executable}
    asyncio.run(client.async_execute(cwd=str(directory), env=environment, cleanup_kc=True))
    notebook.cells.pop()
    for cell in notebook.cells:
        if cell.cell_type == "code":  # Spark's messages differ from machine to machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def main() -> int:
    with tempfile.TemporaryDirectory() as directory:
        notebook = executed(nbformat.read(NOTEBOOK, as_version=4), fresh_clone(Path(directory)))
    nbformat.write(notebook, NOTEBOOK)
    print(f"{NOTEBOOK.name} has the outputs of this run; it has {NOTEBOOK.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
