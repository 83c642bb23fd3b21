"""Processes of the local stack that are killed, on a stack of their own."""

import json
import os
import signal
import socket
import time

import pytest

from local.deployment import deploy, model_archive, upload_model
from local.emulator import processes
from workflow import Workflow, wait_for


@pytest.fixture
def stack(tmp_path):
    stack = processes.start(tmp_path / "stack")
    yield stack
    processes.stop(stack)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    """A stack with the workflow, whose helpers can be killed."""
    stack = processes.start(tmp_path_factory.mktemp("deployed") / "stack")
    model = upload_model(stack, model_archive())
    yield Workflow(stack, deploy(stack, EndpointType="serverless", ModelDataUrl=model))
    processes.stop(stack)


def kill(stack, name):
    os.kill(stack.pids[name], signal.SIGKILL)
    os.waitpid(stack.pids[name], 0)


def test_what_a_killed_command_has_left_running_is_stopped(stack):
    processes.stop_remains(stack.directory)
    assert [name for name, pid in stack.pids.items() if processes.is_running(name, pid)] == []
    processes.stop_remains(stack.directory)  # nothing is left


def test_a_helper_that_dies_is_restarted_and_nothing_is_lost(deployed, seven, capsys):
    stack = deployed.stack
    for name in ("xray", "sagemaker"):
        kill(stack, name)
        again = processes.running(stack.directory)
        assert again is not None and again.ports == stack.ports
        stack.pids = again.pids
    assert "Restarted the emulated SageMaker" in capsys.readouterr().out
    assert deployed.classify("seven.png", seven).output["label"] == "7"
    assert wait_for(lambda: (stack.directory / "xray.jsonl").read_text())


def test_a_stray_datagram_does_not_end_the_collector_of_traces(stack):
    address = ("127.0.0.1", stack.ports["xray"])
    segment = b'{"format": "json", "version": 1}\n{"name": "segment"}'
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for datagram in (b"\xff\xfe", b"", b"\n[1]", b"x\n" + b"[" * 60_000, b"\n{", segment):
            sender.sendto(datagram, address)
    written = wait_for(lambda: (stack.directory / "xray.jsonl").read_text())
    assert [json.loads(line) for line in written.splitlines()] == [{"name": "segment"}]


def test_a_killed_emulator_is_reported_by_the_next_command_and_leaves_no_process(stack, capsys):
    stack.client("lambda")
    kill(stack, "emulator")
    assert processes.running(stack.directory) is None
    told = " ".join(capsys.readouterr().out.split())
    assert "The local stack has died" in told and "executions" in told and "make up" in told
    assert not any(processes.has_members(pid) for pid in stack.pids.values())
    assert processes.running(stack.directory) is None
    assert capsys.readouterr().out == ""


def test_an_endpoint_whose_server_dies_gets_another(deployed, seven):
    assert deployed.classify("before.png", seven).status == "SUCCEEDED"
    group = deployed.stack.pids["sagemaker"]
    servers = [
        int(path.name) for path in processes.Path("/proc").glob("[0-9]*")
        if path.name != str(group) and is_server(path, group)
    ]  # fmt: skip
    assert servers
    for pid in servers:
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    assert deployed.classify("after.png", seven).status == "SUCCEEDED"


def is_server(path, group):
    try:
        return os.getpgid(int(path.name)) == group and "endpoint/server.py" in (path / "cmdline").read_text()
    except (OSError, ProcessLookupError):
        return False
