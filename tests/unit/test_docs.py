"""What can be checked of the documents."""

import re

import pytest

from documents import ROOT, TEMPLATE
from test_state_machine import exception_names

README = (ROOT / "README.md").read_text()
OPERATIONS = (ROOT / "docs/operations.md").read_text()
MONITORING = (ROOT / "docs/monitoring.md").read_text()
DECISIONS = (ROOT / "docs/decisions.md").read_text()
LOCAL_STACK = (ROOT / "docs/local-stack.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
CONFORMANCE = "".join(path.read_text() for path in (ROOT / "tests/conformance").glob("test_*.py"))


def rows(text, heading):
    """The cells of the table under a heading, without its head."""
    section = text.partition(heading)[2]
    lines = [line for line in section.partition("\n#")[0].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_every_make_command_of_the_documents_is_one_of_the_makefile():
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    shown = set(
        re.findall(
            r"\bmake ([a-z]+(?:-[a-z]+)*)\b(?! it\b)",
            " ".join(re.findall(r"`[^`]*`|```.*?```", README + OPERATIONS + MONITORING + LOCAL_STACK, re.DOTALL)),
        )
    )
    assert shown >= {"run", "test"}
    assert shown <= targets


def test_every_path_of_the_tree_is_there():
    tree = README.partition("## Where things are")[2].split("```")[1]
    paths = [line.split()[0] for line in tree.strip().splitlines()]
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_every_linked_file_is_there(name):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / name).read_text())
    assert [link for link in links if not ((ROOT / name).parent / link).exists()] == []


def test_the_parameters_are_those_of_the_template():
    documented = {name.strip("`"): default.strip("`") for name, default, _ in rows(OPERATIONS, "### Parameters")}
    defaults = {name: str(parameter["Default"]) or "empty" for name, parameter in TEMPLATE["Parameters"].items()}
    assert documented == defaults


def test_the_errors_are_those_of_the_functions():
    documented = {row[0].strip("`") for row in rows(OPERATIONS, "## Errors by name")}
    assert documented == {*exception_names(), "THRESHOLD_CONFIDENCE_NOT_MET"}


@pytest.mark.parametrize("error", sorted(exception_names()))
def test_the_readme_names_every_error_with_a_state(error):
    assert f"`{error}`" in README


def test_every_piece_of_the_adapter_names_its_conformance_tests():
    section = DECISIONS.partition("The emulator: ministack")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(test_\w+)`", section)) == set(re.findall(r"def (test_\w+)", CONFORMANCE))
