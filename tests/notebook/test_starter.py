"""Runs training/starter.ipynb from top to bottom on a local stack."""

import re

import nbformat
import pytest
from nbclient import NotebookClient

from documents import ROOT

CELL_TIMEOUT = 600  # seconds


@pytest.fixture(scope="module")
def notebook():
    """The executed notebook; raises if a cell fails."""
    notebook = nbformat.read(ROOT / "training/starter.ipynb", as_version=4)
    return NotebookClient(notebook, timeout=CELL_TIMEOUT, resources={"metadata": {"path": ROOT}}).execute()


def outputs(notebook, kind):
    found = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output["data"][kind] for output in found if kind in output.get("data", {})]


def printed(notebook):
    found = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output["text"] for output in found if output.output_type == "stream")


def test_it_has_figures_of_data_calibration_confidence_and_labels(notebook):
    assert len(outputs(notebook, "image/png")) == 4


def test_its_images_are_accepted_sent_to_review_and_rejected(notebook):
    (counts,) = [text for text in outputs(notebook, "text/plain") if text.startswith("Counter")]
    assert set(re.findall(r"'(\w+)'", counts)) == {"accepted", "THRESHOLD_CONFIDENCE_NOT_MET", "UnsupportedImageError"}


def test_every_execution_has_a_line_in_the_prediction_log(notebook):
    lines, executions = re.search(r"(\d+) lines for (\d+) executions", printed(notebook)).groups()
    assert lines == executions


def test_its_stack_is_stopped_at_the_end(notebook):
    assert not (ROOT / ".local/notebook/stack/stack.json").exists()
