"""The checkout and its tools: any path, any environment of the user's."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

from documents import ROOT
from local import executions
from local.emulator.processes import clean_environment
from tools import install

VARIABLES = {"PIP_USER": "1", "PIP_TARGET": "/nowhere", "PIP_PREFIX": "/nowhere", "PIP_REQUIRE_VIRTUALENV": "1"}
VARIABLES |= {"PYTHONSAFEPATH": "1", "PYTHONWARNINGS": "error", "PYTHONPATH": "/nowhere", "PYTHONUSERBASE": "/nowhere"}


@pytest.fixture
def elsewhere(tmp_path):
    """The project at a path with spaces and a quote, moved after its environments were installed."""
    checkout = tmp_path / "my project's checkout"
    ignored = shutil.ignore_patterns(".git", ".local", ".venv", ".aws-sam", "__pycache__", ".mypy_cache", ".ruff_cache")
    shutil.copytree(ROOT, checkout, ignore=ignored)
    (checkout / ".local").mkdir()
    (checkout / ".venv").symlink_to((ROOT / ".venv").resolve())
    (checkout / ".local/venvs").symlink_to((ROOT / ".local/venvs").resolve())
    for stamp in (".run", ".test", ".sam"):
        (checkout / ".local" / stamp).touch()
    return checkout


def make(folder, *arguments):
    command = ["make", *arguments]
    return subprocess.run(command, cwd=folder, env=os.environ | VARIABLES, capture_output=True, text=True)


@pytest.mark.parametrize("tool", ["--version", "build --help", "deploy --help", "delete --help"])
def test_sam_starts_at_any_path_and_in_any_environment(elsewhere, tool):
    print_command = f"SAM_COMMAND: ; @$(SAM_BUILD) {tool}"
    (elsewhere / "tool.mk").write_text(f"include Makefile\n{print_command}\n")
    done = make(elsewhere, "-f", "tool.mk", "SAM_COMMAND")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["build", "deploy", "destroy", "lint", "run", "up"])
def test_no_command_of_make_depends_on_the_path_of_the_checkout(elsewhere, command):
    done = make(elsewhere, "--dry-run", command)
    assert done.returncode == 0, done.stderr
    unquoted = [line for line in done.stdout.splitlines() if str(elsewhere) in line.replace(f'"{elsewhere}', "")]
    assert unquoted == []


def test_a_command_of_the_project_runs_there(elsewhere):
    done = make(elsewhere, "down")
    assert (done.returncode, done.stdout) == (0, "The local stack was not running.\n"), done.stderr


def test_packages_are_installed_into_the_environment_whatever_pip_is_told(tmp_path, monkeypatch):
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    log = tmp_path / "log"
    monkeypatch.setattr(install, "ROOT", tmp_path)
    install.run([sys.executable, "-c", "import os; print({n for n in os.environ if n[:3] in ('PIP', 'PYT')})"], log)
    assert set(VARIABLES) & set(eval(log.read_text().splitlines()[-1])) == {"PIP_USER"}
    assert not any(name in clean_environment() for name in ("PIP_USER", "PIP_TARGET", "PYTHONWARNINGS"))


def test_an_environment_that_stayed_empty_is_not_taken_for_installed(tmp_path, monkeypatch):
    """As with a target in pip's configuration file."""
    lock = tmp_path / "requirements/empty.txt"
    lock.parent.mkdir()
    lock.write_text("iniconfig==2.3.0 ; sys_platform == 'win32' --hash=sha256:" + "0" * 64 + "\n")
    monkeypatch.setattr(install, "ROOT", tmp_path)
    monkeypatch.setattr(install, "LOCAL", tmp_path / ".local")
    monkeypatch.setattr(install, "torch_requirement", lambda: "")
    venv = tmp_path / "venv"
    with pytest.raises(install.SetupError, match="empty"):
        install.install("empty", sys.executable, venv, "empty.txt")
    assert not list(venv.glob(".installed-*"))


@pytest.mark.parametrize("text", ["7", '"text"', "[]", "null", "{", "", "[" * 100_000, '{"s3_key": 7}'])
def test_an_execution_with_any_input_has_a_key_or_none(text):
    assert executions.object_key(text) == ""


def test_every_package_is_pinned_with_a_hash():
    files = [
        *(ROOT / "requirements").glob("*.txt"),
        ROOT / "functions/requirements.txt",
        ROOT / "endpoint/requirements.txt",
    ]
    for file in files:
        entries = re.split(r"\n(?=\S)", file.read_text())
        pins = [entry for entry in entries if not entry.startswith("#")]
        assert pins and all("==" in pin and "--hash=sha256:" in pin for pin in pins), file


def test_pytorch_is_pinned_for_every_supported_python_and_machine():
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    assert f"{groups['train'][0]}+cpu" == install.torch_requirement()
    versions = install.NEWEST[1] - install.OLDEST[1] + 1
    assert len(set(re.findall(r"--hash=sha256:(\w{64})", install.TORCH.read_text()))) == 2 * versions


def test_base_images_are_pinned_by_digest():
    text = (ROOT / "endpoint/Dockerfile").read_text()
    (default,) = re.findall(r"^ARG BASE=(\S+)$", text, re.MULTILINE)
    assert re.fullmatch(r"[\w.:/-]+@sha256:[0-9a-f]{64}", default)
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"$BASE"}


def test_the_bill_of_materials_lists_the_functions_packages(tmp_path):
    python = ROOT / ".local/venvs/audit/bin/python"
    if not python.exists():
        pytest.skip("needs CycloneDX: make build or make audit once")
    command = [python, "-m", "cyclonedx_py", "requirements", ROOT / "functions/requirements.txt"]
    document = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    listed = {f"{component['name']}=={component['version']}" for component in document["components"]}
    pinned = re.findall(r"^(\S+==\S+)", (ROOT / "functions/requirements.txt").read_text(), re.MULTILINE)
    assert document["bomFormat"] == "CycloneDX" and listed == set(pinned)
