"""Ctrl-C, which a terminal sends to all processes of a command: one message, status 130, and no process is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from class_folders import write_classes
from documents import ROOT
from tiny_model import write_tiny_model

START = """
import os, signal, sys
from pathlib import Path
from local.command import *
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may have switched off
"""
ENDING = "\nEnding; Ctrl-C again kills it\n"


def interrupted(code, arguments, *ready):
    """Run a program, and send SIGINT to its process group when each file is there. Returns its status and output."""
    command = [sys.executable, "-c", START + code, *map(str, arguments)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
    ) as process:
        for file in ready:
            while not file.exists():
                assert process.poll() is None, process.stdout.read()
                time.sleep(0.01)
            started = children(process.pid)
            os.killpg(process.pid, signal.SIGINT)
        printed = process.stdout.read()
    assert started and not any(Path(f"/proc/{child}").exists() for child in started)
    return process.returncode, printed


@pytest.mark.parametrize(
    ("script", "printed"),
    [
        ("sys.exit('the script was interrupted')", "the script was interrupted\n"),
        ("signal.raise_signal(signal.SIGKILL)", "\nInterrupted.\n"),
        ("raise SystemExit(0)", "\nInterrupted.\n"),
    ],
)
def test_a_scripts_last_words_are_the_only_ones(tmp_path, script, printed):
    (tmp_path / "script.py").write_text(f"""
import pathlib, signal, sys, time
try:
    pathlib.Path("{tmp_path}/ready").touch()
    time.sleep(60)
except KeyboardInterrupt:
    {script}
""")
    code = "with report_errors(): run([sys.executable, sys.argv[1]], os.environ)"
    assert interrupted(code, [tmp_path / "script.py"], tmp_path / "ready") == (130, ENDING + printed)


def test_a_script_that_does_not_end_is_killed_by_the_second_one(tmp_path):
    (tmp_path / "script.py").write_text(f"""
import pathlib, time
for name in ("first", "second"):
    try:
        pathlib.Path("{tmp_path}", name).touch()
        time.sleep(60)
    except KeyboardInterrupt:
        pass
""")
    code = "with report_errors(): run([sys.executable, sys.argv[1]], os.environ)"
    ready = [tmp_path / "first", tmp_path / "second"]
    assert interrupted(code, [tmp_path / "script.py"], *ready) == (130, f"{ENDING}\nInterrupted.\n")


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_script_ends_with_the_command(sent, tmp_path):
    (tmp_path / "script.py").write_text(f"""
import pathlib, time
try:
    pathlib.Path("{tmp_path}/ready").touch()
    while True:  # a signal just before a long sleep would be seen after it
        time.sleep(0.1)
finally:
    print("ended")
""")
    code = "with report_errors(): run([sys.executable, sys.argv[1]], os.environ)"
    command = [sys.executable, "-c", f"{START}signal.signal(signal.SIGINT, signal.SIG_IGN)\n{code}"]
    with subprocess.Popen(
        [*command, tmp_path / "script.py"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        while not (tmp_path / "ready").exists():
            assert process.poll() is None
        process.send_signal(sent)
        assert process.stdout.read() == "ended\n"  # until no process can write any more
    assert process.returncode == (-sent if sent == signal.SIGKILL else 128 + sent)


def test_nohup_keeps_a_command_running(tmp_path):
    (tmp_path / "script.py").write_text("import os, signal; os.kill(os.getppid(), signal.SIGHUP)")
    code = "with report_errors(): run([sys.executable, sys.argv[1]], os.environ); print('finished')"
    command = ["nohup", sys.executable, "-c", START + code, tmp_path / "script.py"]
    ended = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "finished\n")


@pytest.mark.parametrize("script", ["train.py", "compare.py", "prepare.py"])
def test_a_script_that_still_imports_its_libraries_ends_without_a_traceback(script, tmp_path):
    (tmp_path / "numpy.py").write_text(
        "import pathlib, time; pathlib.Path(__file__).with_name('ready').touch(); time.sleep(60)"
    )
    code = "script, folder = sys.argv[1:]\n"
    code += "with report_errors(): run([sys.executable, script], os.environ | {'PYTHONPATH': folder})"
    assert interrupted(code, [f"training/{script}", tmp_path], tmp_path / "ready") == (130, f"{ENDING}\nInterrupted.\n")


@pytest.mark.parametrize("script", ["train.py", "compare.py", "prepare.py", "launch/job.py"])
def test_a_script_in_the_background_of_another_is_not_interrupted(script, tmp_path):
    (tmp_path / "boto3.py").write_text("import numpy")
    (tmp_path / "numpy.py").write_text(
        "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('imported'); 1 / 0"
    )
    code = "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.path.insert(0, sys.argv[2])\n"
    code += "runpy.run_path(sys.argv[1], run_name='__main__')"
    command = [sys.executable, "-c", code, f"training/{script}", tmp_path]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout == "imported\n" and "ZeroDivisionError" in ended.stderr


def test_a_replay_is_interrupted_while_the_model_answers(tmp_path):
    write_tiny_model(tmp_path / "model")
    write_classes(tmp_path / "images", {"dark": 1})
    code = """
from local.progress import in_parallel
from local.replay import answerer
(image,) = Path(sys.argv[1], "images/dark").iterdir()
with report_errors(), answerer(Path(sys.argv[1], "model")) as model:
    Path(sys.argv[1], "ready").touch()
    for _ in in_parallel("Asking the model", lambda _: model.answer(image), range(10 ** 9), 10 ** 9, 8):
        pass
"""
    status, printed = interrupted(code, [tmp_path], tmp_path / "ready")
    assert (status, printed.strip()) == (130, "Interrupted.")


def test_a_loop_is_interrupted_while_its_first_model_is_trained(tmp_path):
    for part in ("train", "validation", "test"):
        write_classes(tmp_path / part, {"dark": 20, "light": 20})
    code = "from local import loop\nwith report_errors(): loop.train(Path(sys.argv[1]), Path(sys.argv[1], 'model'))"
    status, printed = interrupted(code, [tmp_path], tmp_path / "training")
    assert status == 130
    assert printed.startswith(ENDING)  # then perhaps Python's note on an interruption that was lost in a callback
    assert printed.endswith("\nInterrupted: the model folder is unchanged.\n")


def test_an_interruption_that_python_drops_is_repeated():
    code = """
import signal, sys, weakref
sys.path[:0] = ["training", "endpoint"]
import train
for each in (signal.SIGINT, signal.SIGALRM):
    signal.signal(each, train.interrupt)
labels = set()
reference = weakref.ref(labels, lambda _: signal.raise_signal(signal.SIGINT))
try:
    del labels
    print("dropped")
    while True:
        pass
except KeyboardInterrupt:
    print("interrupted")
    signal.setitimer(signal.ITIMER_REAL, 0)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.stdout == "dropped\ninterrupted\n", ended.stderr


@pytest.mark.parametrize("loaded", ["python", "numpy"])
def test_networks_that_still_import_their_libraries_end_without_a_traceback(loaded, tmp_path):
    write_classes(tmp_path / "train", {"dark": 20, "light": 20})
    command = [sys.executable, "training/train.py", "--networks", "2", "--epochs", "100000"]
    command += [
        "--train",
        tmp_path / "train",
        "--model-dir",
        tmp_path / "model",
        "--output-data-dir",
        tmp_path / "output",
    ]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's `&` ignores SIGINT
    ) as process:
        next(line for line in process.stdout if line.startswith("Training on"))
        while not (networks := [child for child in children(process.pid) if starts(child, loaded)]):
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stdout.read()
    assert (process.returncode, rest.strip()) == (1, "Interrupted: the model folder is unchanged.")
    assert not any(Path(f"/proc/{network}").exists() for network in networks)


def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def starts(pid, loaded):
    """Whether the process is a network's, and has loaded the library."""
    return (
        b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes() and loaded in Path(f"/proc/{pid}/maps").read_text()
    )
