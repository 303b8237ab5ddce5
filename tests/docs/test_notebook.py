# SPDX-License-Identifier: Apache-2.0
"""Runs the notebook of the manual in a Jupyter kernel, and checks what its cells show."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs" / "examples" / "notebook.ipynb"
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed (extra test)")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (extra test)")
pytest.importorskip("ipykernel", reason="ipykernel is not installed (extra test)")


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Return the notebook with the outputs of its cells. The kernel runs in an empty folder."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        client = nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}})
        client.execute()
    return notebook


def list_outputs(notebook, source):
    """Return the outputs of the only cell with a text in its source, by type of content."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and source in cell.source]
    assert len(cells) == 1, source
    return [output.data for output in cells[0].outputs if output.output_type == "execute_result"]


def test_notebook_is_stored_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) >= 8 and all(not cell.outputs and cell.execution_count is None for cell in code)


def test_notebook_cells_show_pictures_and_tables(executed):
    for call in (".plot(time=", '.plot(lead=["10min", "30min"], member=', "probability=[1, 5]"):
        (shown,) = list_outputs(executed, call)
        assert len(shown["image/png"]) > 20_000, call
    for call, text in (
        ("fastds.models.load_card", "training_data"),
        ("fine.fastds.evaluate", "Errors of downscaled radar fields"),
        ("risk.fastds.evaluate", "Brier"),
        ("fastds.query(stations)", "reflectivity_bilinear"),
    ):
        (shown,) = list_outputs(executed, call)
        assert text in shown["text/html"], call
    errors = [output for cell in executed.cells for output in cell.get("outputs", []) if output.output_type == "error"]
    assert not errors


def test_notebook_shows_the_functions_that_take_the_dataset(executed):
    (shown,) = [cell.outputs[0].data for cell in executed.cells if cell.source == "truth.fastds"]
    assert "query(points)" in shown["text/html"] and ">no<" not in shown["text/html"]
