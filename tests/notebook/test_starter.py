"""training/starter.ipynb, executed from top to bottom against a local stack."""

import re

import nbformat
import pytest
from nbclient import NotebookClient

from documents import ROOT

SECONDS_FOR_A_CELL = 600


@pytest.fixture(scope="module")
def notebook():
    """The notebook with its outputs; a cell that fails is an error here."""
    notebook = nbformat.read(ROOT / "training/starter.ipynb", as_version=4)
    return NotebookClient(notebook, timeout=SECONDS_FOR_A_CELL, resources={"metadata": {"path": ROOT}}).execute()


def outputs(notebook, kind):
    found = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output["data"][kind] for output in found if kind in output.get("data", {})]


def printed(notebook):
    found = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output["text"] for output in found if output.output_type == "stream")


def test_it_shows_the_data_calibration_confidence_and_labels(notebook):
    assert len(outputs(notebook, "image/png")) == 4


def test_images_are_accepted_sent_to_review_and_refused(notebook):
    (counts,) = [text for text in outputs(notebook, "text/plain") if text.startswith("Counter")]
    assert set(re.findall(r"'(\w+)'", counts)) == {"accepted", "THRESHOLD_CONFIDENCE_NOT_MET", "UnsupportedImageError"}


def test_every_execution_has_its_line_in_the_prediction_log(notebook):
    lines, executions = re.search(r"(\d+) lines for (\d+) executions", printed(notebook)).groups()
    assert lines == executions


def test_its_stack_is_stopped_at_the_end(notebook):
    assert not (ROOT / ".local/notebook/stack/stack.json").exists()
