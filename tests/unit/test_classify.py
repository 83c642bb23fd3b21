"""make classify with the files and values that people pass."""

import os
import subprocess

import pytest

from documents import ROOT
from local.classify import check, parse_threshold
from local.command import StackError


@pytest.mark.parametrize("text", ["nan", "inf", "-0.5", "0", "1.01", "1e999", "high", "0,5"])
def test_a_threshold_that_is_no_fraction_is_a_sentence(text):
    with pytest.raises(StackError, match=f"THRESHOLD={text} is .*use .* above 0 and at most 1"):
        parse_threshold(text)


def test_a_threshold_is_optional():
    assert (parse_threshold(""), parse_threshold("1"), parse_threshold("0.5")) == (None, 1, 0.5)


@pytest.mark.parametrize("name", ["", ".", "none.png", "n" * 300, "a\0b"])
def test_a_path_that_is_no_file_is_a_sentence(tmp_path, name):
    with pytest.raises(StackError, match=r"is not a file|cannot be read"):
        check(tmp_path / name)


def test_a_file_name_that_is_not_utf_8_is_a_sentence(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff.png")
    path.touch()
    with pytest.raises(StackError, match="not valid UTF-8"):
        check(path)


@pytest.mark.parametrize(
    "name", ["$HOME.png", "it's.png", 'a "b".png', "`id`.png", "$(id).png", "a b;c&d|e.png", "-x.png"]
)
@pytest.mark.parametrize("variable", ["IMAGE", "THRESHOLD"])
def test_make_passes_any_characters_unchanged(name, variable):
    (line,) = [
        line
        for line in subprocess.run(
            ["make", "--dry-run", "classify", f"{variable}={name}"], cwd=ROOT, capture_output=True, text=True
        ).stdout.splitlines()
        if "local.classify" in line
    ]
    shown = line.replace(".venv/bin/python -m local.classify", "printf %s\\\\n")
    printed = subprocess.run(["bash", "-c", shown], capture_output=True, text=True).stdout.splitlines()
    assert (name if variable == "IMAGE" else f"--threshold={name}") in printed
