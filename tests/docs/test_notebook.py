"""The notebooks run from top to bottom on embedded data, and show pictures."""

import os
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def executed(path, folder, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return notebook


def printed(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output.get("text", "") for output in outputs if output.output_type == "stream")


def pictures(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [output for output in outputs if "image/png" in output.get("data", {})]


@pytest.mark.slow
def test_evolve_a_hub_model(tmp_path, monkeypatch):
    notebook = executed(FOLDER / "evolve_a_hub_model.ipynb", tmp_path, monkeypatch)
    assert len(pictures(notebook)) == 5
    assert "significant gain: evolved is more accurate" in printed(notebook)
    if os.environ.get("SAVE_NOTEBOOK"):
        nbformat.write(notebook, os.environ["SAVE_NOTEBOOK"])


@pytest.mark.slow
def test_evolve_on_several_processes(tmp_path, monkeypatch):
    notebook = executed(FOLDER / "evolve_on_several_processes.ipynb", tmp_path, monkeypatch)
    assert "599 images" in printed(notebook)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_valid_compiles_and_holds_no_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            compile(cell.source, path.name, "exec")
            assert not cell.outputs and cell.execution_count is None


def test_one_line_is_to_be_changed_for_a_model_of_the_hub():
    notebook = nbformat.read(FOLDER / "evolve_a_hub_model.ipynb", as_version=4)
    assert "".join(cell.source for cell in notebook.cells if cell.cell_type == "code").count("# <-- change") == 1
