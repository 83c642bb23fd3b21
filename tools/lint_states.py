"""Run statelint on every state machine, without the fields of a Distributed Map that it does not know yet.

statelint 3.1.0 rejects Label, WriterConfig and ReaderConfig's InputType and CSVHeaderLocation, and wants literal
numbers where Step Functions accepts expressions. Tests check these: tests/unit/test_state_machine.py.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
UNKNOWN = {"Label", "WriterConfig", "ReaderConfig"}
NUMBERS = {"MaxConcurrency", "ToleratedFailurePercentage", "MaxItemsPerBatch"}


def lintable(node: Any) -> Any:
    """A definition as statelint knows it."""
    if isinstance(node, list):
        return [lintable(each) for each in node]
    if not isinstance(node, dict):
        return node
    known = {name: lintable(value) for name, value in node.items() if name not in UNKNOWN}
    return known | {name: 1 for name in NUMBERS & set(known) if isinstance(known[name], str)}


def lint(path: Path) -> int:
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory, path.name)
        copy.write_text(json.dumps(lintable(json.loads(path.read_text()))))
        return subprocess.run([sys.executable, "-m", "statelint", "--ignore=FLOAT", copy]).returncode


if __name__ == "__main__":
    sys.exit(max([lint(path) for path in sorted((ROOT / "statemachine").glob("*.json"))]))
