"""An interrupted training continues from its checkpoint. The models are those of the same training in one piece."""

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time

import pytest
import torch

import train
from checkpoint import Checkpoint, key_of
from class_folders import write_classes

OPTIONS = ["--epochs", "12", "--width", "8", "--patience", "12", "--mix", "0.5"]


def command(folder, *options):
    return [
        *(sys.executable, train.__file__, "--train", folder / "images", *OPTIONS, *options),
        *("--model-dir", folder / "model", "--output-data-dir", folder / "output"),
    ]


def run(folder, *options):
    """Train to the end. Returns what was printed and the model's hash."""
    job = subprocess.run(command(folder, *options), capture_output=True, text=True, timeout=300)
    assert (job.returncode, job.stderr) == (0, "")
    return job.stdout, hashlib.sha256((folder / "model/model.onnx").read_bytes()).hexdigest()


@pytest.mark.parametrize("parts", [["--networks", "1"], ["--networks", "2", "--patches", "16"]])
def test_a_killed_training_continues_and_gives_the_same_model_to_the_last_bit(tmp_path, parts):
    write_classes(tmp_path / "images", {"cat": 60, "dog": 60})
    _, uninterrupted = run(tmp_path, *parts)
    checkpoints = tmp_path / "checkpoints"
    options = [*parts, "--checkpoint-dir", checkpoints]

    with subprocess.Popen(
        command(tmp_path, *options), stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as job:
        lines = iter(job.stdout.readline, "")
        networks = {f"network-{number}.pt" for number in range(1, int(parts[1]) + 1)}
        for line in lines:
            if "epoch=" in line and networks <= {path.name for path in checkpoints.iterdir()}:
                break
        os.killpg(job.pid, signal.SIGKILL)

    output, resumed = run(tmp_path, *options)
    assert output.count("continues after epoch") == int(parts[1])
    assert resumed == uninterrupted
    assert "epoch=1 " not in output  # nothing is trained twice
    assert [path.name for path in checkpoints.glob("*.pt")] == []  # the next training starts at the beginning
    metadata = json.loads((tmp_path / "model/metadata.json").read_text())
    assert metadata["epochs"] == 12 * int(parts[1])


def children(pid):
    """The processes whose parent is `pid`."""
    ps = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    return [int(child) for child, parent in map(str.split, ps.splitlines()) if int(parent) == pid]


def alive(pid):
    state = subprocess.run(["ps", "-p", str(pid), "-o", "stat="], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_the_networks_processes_end_with_the_command_and_leave_the_checkpoint(tmp_path, ending):
    write_classes(tmp_path / "images", {"cat": 60, "dog": 60})
    options = ["--networks", "2", "--epochs", "100000", "--patience", "100000"]
    log = tmp_path / "log"
    states = {"plan.pt", "network-1.pt", "network-2.pt"}
    checkpoints = tmp_path / "checkpoints"
    with log.open("w") as output:  # no pipe, whose end would end the networks' processes too
        job = subprocess.Popen(
            command(tmp_path, *options, "--checkpoint-dir", checkpoints), stdout=output, stderr=output
        )
    before = time.monotonic()
    while not states <= {path.name for path in checkpoints.glob("*")}:
        assert time.monotonic() < before + 120 and job.poll() is None, log.read_text()
        time.sleep(0.1)
    started = children(job.pid)
    assert len(started) >= 2
    job.send_signal(ending)
    assert job.wait(10) == -ending
    before = time.monotonic()
    while any(map(alive, started)) and time.monotonic() < before + 10:
        time.sleep(0.1)
    assert not any(map(alive, started))
    assert states <= {path.name for path in checkpoints.glob("*")}


def test_a_state_is_read_only_by_the_same_training(tmp_path, capsys):
    Checkpoint(tmp_path, "one").save("plan", {"epochs": 3})
    assert Checkpoint(tmp_path, "one").load("plan") == {"epochs": 3}
    assert Checkpoint(tmp_path, "one").load("patches") is None
    assert capsys.readouterr().out == ""
    assert Checkpoint(tmp_path, "other").load("plan") is None
    assert capsys.readouterr().out == f"Ignoring {tmp_path}/plan.pt: it is of other options, data or code\n"


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", pickle.dumps(Harmful())])
def test_a_file_that_is_no_checkpoint_is_ignored_and_its_code_is_not_run(tmp_path, capsys, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.pt").write_bytes(content)
    torch.save({"key": "", "state": Harmful()}, tmp_path / "patches.pt")
    for name in ("plan", "patches"):
        assert Checkpoint(tmp_path).load(name) is None
        assert f"Ignoring {tmp_path}/{name}.pt: it is not a checkpoint" in capsys.readouterr().out
    assert not (tmp_path / "harmed").exists()


def test_removing_the_states_leaves_other_files(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    for name in ("plan", "patches", "network-1"):
        checkpoint.save(name, {})
    (tmp_path / "resnet18.pt").touch()
    checkpoint.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["resnet18.pt"]


def test_writing_states_takes_at_most_a_hundredth_of_the_time(tmp_path):
    checkpoint = Checkpoint(tmp_path)
    checkpoint.save("network-1", {"epoch": 1}, always=False)
    checkpoint.save("network-1", {"epoch": 2}, always=False)  # too early
    assert checkpoint.load("network-1") == {"epoch": 1}
    checkpoint.next = 0.0
    checkpoint.save("network-1", {"epoch": 3}, always=False)
    assert checkpoint.load("network-1") == {"epoch": 3}
    checkpoint.save("network-1", {"epoch": 4})
    assert checkpoint.load("network-1") == {"epoch": 4}


def test_other_options_or_other_data_are_another_training(tmp_path):
    array = torch.arange(4).numpy()
    assert key_of([{"seed": 0}, array]) == key_of([{"seed": 0}, array.copy()])
    assert len({key_of([{"seed": 0}, array]), key_of([{"seed": 1}, array]), key_of([{"seed": 0}, array + 1])}) == 3


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = Checkpoint()
    checkpoint.save("plan", {})
    assert checkpoint.load("plan") is None
    checkpoint.clear()
    assert list(tmp_path.iterdir()) == []
