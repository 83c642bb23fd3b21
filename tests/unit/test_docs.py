"""The docs against code, template and Makefile."""

import re
import tomllib

import pytest

from documents import MACHINES, ROOT, TEMPLATE
from test_state_machine import exception_names

README = (ROOT / "README.md").read_text()
OPERATIONS = (ROOT / "docs/operations.md").read_text()
MONITORING = (ROOT / "docs/monitoring.md").read_text()
DECISIONS = (ROOT / "docs/decisions.md").read_text()
LOCAL_STACK = (ROOT / "docs/local-stack.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
DOCUMENTS = sorted(
    str(path.relative_to(ROOT)) for pattern in ("*.md", "docs/*.md", "benchmarks/*.md") for path in ROOT.glob(pattern)
)
ROOMS = "benchmarks|docs|endpoint|events|functions|local|monitoring|requirements|statemachine|tests|tools|training"
CONFORMANCE = "".join(path.read_text() for path in (ROOT / "tests/conformance").glob("test_*.py"))


def rows(text, heading):
    """The cells of the table under a heading, without its header."""
    section = text.partition(heading)[2]
    lines = [line for line in section.partition("\n#")[0].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_every_documented_make_command_exists():
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    shown = set(
        re.findall(
            r"\bmake ([a-z]+(?:-[a-z]+)*)\b(?! it\b)",
            " ".join(re.findall(r"`[^`]*`|```.*?```", README + OPERATIONS + MONITORING + LOCAL_STACK, re.DOTALL)),
        )
    )
    assert shown >= {"run", "test"}
    assert shown <= targets


def test_every_path_of_the_readmes_tree_exists():
    tree = README.partition("## Where things are")[2].split("```")[1]
    paths = [line.split()[0] for line in tree.strip().splitlines()]
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_linked_file_and_every_path_exists(name):
    text = (ROOT / name).read_text()
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [link for link in links if not ((ROOT / name).parent / link).exists()] == []
    paths = re.findall(rf"(?<![\w/.-])(?:\.ci|\.github|{ROOMS})/[\w./-]*", text)
    modules = [
        module.replace(".", "/") for module in re.findall(r"python -m ((?:local|training|benchmarks)[\w.]+)", text)
    ]
    missing = [path for path in paths if not (ROOT / path.rstrip(".")).exists()]
    assert missing + [module for module in modules if not (ROOT / f"{module}.py").exists()] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_anchor_of_a_link_is_a_heading(name):
    for target, anchor in re.findall(r"\]\(((?!https?:)[^)#]*)#([^)]+)\)", (ROOT / name).read_text()):
        text = ((ROOT / name).parent / target if target else ROOT / name).read_text()
        headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        assert anchor in [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_lines_are_under_120_characters_except_in_code_blocks(name):
    prose = re.sub(r"```.*?```", "", (ROOT / name).read_text(), flags=re.DOTALL)
    assert [line for line in prose.splitlines() if len(line) >= 120] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_blank_line_precedes_each_heading(name):
    text = re.sub(r"```.*?```", "", (ROOT / name).read_text(), flags=re.DOTALL)
    assert not re.findall(r"[^\n]\n#+ .*", text)


def test_the_front_door_is_short():
    lines = {name: len((ROOT / name).read_text().splitlines()) for name in ("README.md", "CONTRIBUTING.md")}
    assert lines["README.md"] <= 150
    assert lines["CONTRIBUTING.md"] <= 60


def test_the_version_is_the_changelogs_newest():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    released = re.findall(r"^## \[(\d[\d.]*)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == project["version"]


def test_the_documented_parameters_are_the_templates():
    documented = {name.strip("`"): default.strip("`") for name, default, _ in rows(OPERATIONS, "### Parameters")}
    defaults = {name: str(parameter["Default"]) or "empty" for name, parameter in TEMPLATE["Parameters"].items()}
    assert documented == defaults


def test_the_documented_errors_and_retries_are_those_of_functions_and_state_machine():
    retries = dict.fromkeys([*exception_names(), "THRESHOLD_CONFIDENCE_NOT_MET"], "no")
    for machine in reversed(MACHINES):  # single images' numbers last, which the table gives where both machines retry
        for retrier in [retrier for state in machine.states.values() for retrier in state.get("Retry", [])]:
            retries |= {
                error: f"{retrier['MaxAttempts']} times" for error in retrier["ErrorEquals"] if error in retries
            }
    assert {row[0].strip("`"): row[1] for row in rows(OPERATIONS, "## Errors by name")} == retries


@pytest.mark.parametrize("error", sorted(exception_names()))
def test_the_readme_names_every_error(error):
    assert f"`{error}`" in README


def test_every_part_of_the_adapter_is_documented_with_its_conformance_tests():
    section = DECISIONS.partition("The emulator: ministack")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(test_\w+)`", section)) == set(re.findall(r"def (test_\w+)", CONFORMANCE))


def test_the_documented_price_of_snapstart_follows_from_the_functions_memory():
    """$0.0000015046 per GB-second of a cached version: https://aws.amazon.com/lambda/pricing/"""
    default = TEMPLATE["Globals"]["Function"]["MemorySize"]
    memory = {name: row["Properties"].get("MemorySize", default) / 1024 for name, row in TEMPLATE["Resources"].items()
              if row["Type"] == "AWS::Serverless::Function"}  # fmt: skip
    month = round(0.0000015046 * 30 * 24 * 3600, 2)
    uploads = sum(size for name, size in memory.items() if "Batch" not in name and "Review" not in name)
    text = " ".join(OPERATIONS.split())
    assert f"${month:.2f} a month per GB" in text
    assert (
        f"${month * sum(memory.values()):.0f} a month for all ten functions, ${month * uploads:.0f} for the five"
        in text
    )
    assert len(memory) == 10
