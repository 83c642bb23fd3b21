import json

from documents import ROOT


def test_the_notebook_is_committed_without_outputs_and_for_the_local_stack():
    notebook = json.loads((ROOT / "training/starter.ipynb").read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["outputs"] for cell in code] == [[]] * len(code)
    assert {cell["execution_count"] for cell in code} == {None}
    assert code[0]["source"][0] == "ON_AWS = False\n"
