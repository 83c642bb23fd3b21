"""The commands that README.md and docs/local-stack.md show, run in their order in a copy of the checkout."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from documents import ROOT

ELSEWHERE = {  # the beginning of a line -> where it is tested, or why it cannot be
    "make test": "this is one of its tests",
    "make invoke": "tests/sam_local",
    ".venv/bin/python endpoint/package.py": "needs an account",
    "make deploy": "needs an account",
    "aws s3 cp seven.png": "needs an account",
}
EXAMPLES = {"path/to/class/folders": ".local/data/digits/train"}
SHARED = (".venv", ".local/venvs", ".local/cache")
COPIED = ("data/digits", "model", "training", "package", "sam")


@pytest.fixture
def checkout(tmp_path):
    """A copy of the checkout with the installed packages, and with its own model and stack."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(os.path.exists, (ROOT / name for name in listed.splitlines())):
        (tmp_path / name.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(name, tmp_path / name.relative_to(ROOT))
    local = tmp_path / ".local"
    local.mkdir()
    for name in SHARED:
        if (ROOT / name).exists():
            (tmp_path / name).symlink_to((ROOT / name).resolve())
    for name in COPIED:
        shutil.copytree(ROOT / ".local" / name, local / name)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "-A"], cwd=tmp_path, check=True)
    install = "import sys; sys.path.insert(0, 'tools'); import install; install.write_commands()"
    subprocess.run([sys.executable, "-c", install], cwd=tmp_path, check=True)
    for stamp in (".run", ".test", ".sam", "model/metadata.json", "package/archive.txt", "sam/build/template.yaml"):
        (local / stamp).touch()  # in this order, so that make finds them up to date
    yield tmp_path
    subprocess.run(["make", "down"], cwd=tmp_path, env=environment(), check=True)


def environment():
    foreign = ("MAKE", "MFLAGS", "AWS_", "PYTEST_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


def shown_commands():
    """The lines of the shell blocks that run here. Lines that end with a backslash are joined."""
    has_aws = subprocess.run(["bash", "-c", "aws --version"], capture_output=True).returncode == 0
    for document in ("README.md", "docs/local-stack.md"):
        text = (ROOT / document).read_text().replace("\\\n", "")
        for block in re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            for line in block.splitlines():
                has_tool = not line.startswith("aws ") or has_aws
                if has_tool and not line.startswith(tuple(ELSEWHERE)):
                    yield line


def test_every_command_that_needs_no_account_works_as_shown(checkout):
    script = "set -e -o pipefail\n"
    for line in shown_commands():
        for example, value in EXAMPLES.items():
            line = line.replace(example, value)
        script += f"echo {shlex.quote('$ ' + line)}\n{line}\n"
    shown = subprocess.run(
        ["bash", "-c", script], cwd=checkout, env=environment(), capture_output=True, text=True, timeout=900
    )
    assert shown.returncode == 0, (shown.stdout + shown.stderr)[-3000:]
    tracked = subprocess.run(["git", "diff", "--stat"], cwd=checkout, capture_output=True, text=True, check=True)
    assert tracked.stdout == "", "a command wrote to a tracked file"
