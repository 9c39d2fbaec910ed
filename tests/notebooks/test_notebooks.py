"""Every notebook runs from a clean kernel, and is kept with its outputs."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(notebook):
    """What the outputs show: "text/plain", "image/png", "stdout" and so on."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return {kind for o in outputs for kind in (o.get("data") or {o.get("name"): ""})}


def test_there_are_seven():
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06", "07"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_kept_with_outputs_of_one_clean_run(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert {"image/png", "stdout"} <= kinds(notebook)
    assert not {"stderr", None} & kinds(notebook)  # neither warnings nor errors


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_a_clean_kernel(path):
    notebook = nbformat.read(path, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs = []
    # A user's environment: the suite's eight devices and quick compilation are not in it.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    clean |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(FOLDER.parent)}
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute(env=clean, cwd=str(FOLDER))
    assert "image/png" in kinds(notebook)
