"""Start, find and stop the processes of the local stack.

xray_daemon.py     collects the functions' traces
sagemaker_api.py   emulates SageMaker's APIs; starts endpoint/server.py for each endpoint
start.py           emulates S3, EventBridge, Step Functions, Lambda, SQS, CloudFormation ...
"""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from botocore.client import BaseClient

from local.command import LOCAL, ROOT, StackError, UsageError

REGION = "us-east-1"
SECONDS_TO_START = 60
FUNCTIONS_PER_CORE = 4
CONCURRENCY = "LAMBDA_ACCOUNT_CONCURRENCY"
MODULES = {"xray": "xray_daemon", "sagemaker": "sagemaker_api", "emulator": "start"}
NO_PROXY = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
os.environ |= NO_PROXY  # all addresses are local, so a proxy of the user's must not be used


@dataclasses.dataclass
class Stack:
    """A running local stack: the directory of its files, and its ports and process IDs by name."""

    directory: Path
    ports: dict[str, int]
    pids: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['emulator']}"

    @property
    def aws_variables(self) -> dict[str, str]:
        """Environment variables that point any AWS client at this stack and nowhere else."""
        sagemaker = f"http://127.0.0.1:{self.ports['sagemaker']}"
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ENDPOINT_URL_SAGEMAKER": sagemaker,
            "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": sagemaker,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_EC2_METADATA_DISABLED": "true",
            "SAM_CLI_TELEMETRY": "0",
            **NO_PROXY,
        }

    def client(self, service: str) -> BaseClient:
        """A boto3 client for this stack, unaffected by the user's AWS variables and files."""
        with replaced_environment(clean_environment() | self.aws_variables):
            return boto3.Session().client(service)

    def save(self) -> None:
        (self.directory / "stack.json").write_text(json.dumps({"ports": self.ports, "pids": self.pids}))


def clean_environment() -> dict[str, str]:
    """The user's environment without variables that would reconfigure AWS clients, SAM or Python."""
    foreign = ("AWS_", "SAM_CLI_", "SAMCLI_", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


@contextlib.contextmanager
def replaced_environment(environment: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(directory: Path, **variables: str) -> Stack:
    """Start the processes with their files in `directory`; `variables` are added to the emulator's environment."""
    concurrent = account_concurrency()
    shutil.rmtree(directory, ignore_errors=True)  # left by an earlier stack
    (directory / "tmp").mkdir(parents=True)
    tcp, udp = socket.SOCK_STREAM, socket.SOCK_DGRAM
    stack = Stack(directory, {"emulator": free_port(tcp), "sagemaker": free_port(tcp), "xray": free_port(udp)})
    environment = clean_environment() | stack.aws_variables
    xray = ["--port", stack.ports["xray"], "--output", directory / "xray.jsonl"]
    spawn(stack, "xray", [sys.executable, *module("xray"), *xray], environment)
    sagemaker = ["--port", stack.ports["sagemaker"], "--work-dir", directory / "sagemaker"]
    spawn(stack, "sagemaker", [sys.executable, *module("sagemaker"), *sagemaker], environment)
    emulator = {
        "PATH": os.environ["PATH"],  # the functions inherit this environment and must not see the user's
        "LANG": "C.UTF-8",
        "TZ": ":UTC",
        "HOME": str(directory / "tmp"),
        "GATEWAY_PORT": str(stack.ports["emulator"]),
        "BIND_HOST": "127.0.0.1",
        "MINISTACK_HOST": "localhost",
        "LOG_LEVEL": "WARNING",
        "SFTP_ENABLED": "0",
        "IOT_MTLS_ENABLED": "0",
        "DOCKER_HOST": "unix:///nonexistent.sock",
        "TMPDIR": str(directory / "tmp"),
        "AUTH": "true",  # enforce the functions' roles
        CONCURRENCY: str(concurrent),
        "LAMBDA_PYTHON": str(LOCAL / "venvs/lambda/bin/python"),
        "AWS_LAMBDA_LOG_FORMAT": "JSON",
        "AWS_XRAY_DAEMON_ADDRESS": f"127.0.0.1:{stack.ports['xray']}",
        "AWS_XRAY_CONTEXT_MISSING": "LOG_ERROR",
    }
    python = LOCAL / "venvs/emulator/bin/python"
    spawn(stack, "emulator", [python, *module("emulator")], stack.aws_variables | emulator | variables)
    try:
        wait_until_healthy(stack)
    except BaseException:
        stop(stack)
        raise
    return stack


def account_concurrency() -> int:
    """The emulated account's limit of functions that run at once: the user's, or what this machine can bear."""
    given = os.environ.get(CONCURRENCY)
    if not given:
        return FUNCTIONS_PER_CORE * len(os.sched_getaffinity(0))
    if not given.isdecimal() or int(given) < 1:
        raise UsageError(f"{CONCURRENCY}={given} is not a number of functions: use 1 or more")
    return int(given)


def module(name: str) -> list[str]:
    """The Python arguments that run a process of the stack; is_running() looks for them on its command line."""
    return ["-m", f"local.emulator.{MODULES[name]}"]


def spawn(stack: Stack, name: str, command: list[Any], environment: dict[str, str]) -> None:
    """Start a process in its own session, so that Ctrl-C in this terminal does not stop it; stop() does."""
    with (stack.directory / f"{name}.log").open("wb") as log:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        process = subprocess.Popen([*map(str, command)], cwd=ROOT, env=environment, start_new_session=True, **streams)
    stack.pids[name] = process.pid
    stack.save()


def is_running(name: str, pid: int) -> bool:
    """Whether the process is still running and is ours, not another one with a reused process ID."""
    try:
        return "\0".join(module(name)) in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def wait_until_healthy(stack: Stack) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        for name, pid in stack.pids.items():
            if os.waitpid(pid, os.WNOHANG)[0]:
                log = stack.directory / f"{name}.log"
                raise StackError(f"{name} exited during startup:\n{tail(log)}")
        try:
            with urllib.request.urlopen(f"{stack.url}/_ministack/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline:
                log = stack.directory / "emulator.log"
                raise StackError(f"The emulator did not start within {SECONDS_TO_START} s: see {log}") from None
            time.sleep(0.05)


def tail(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def stop(stack: Stack) -> None:
    """Stop the processes and their functions, and wait until they have exited."""
    ours = [pid for name, pid in stack.pids.items() if is_running(name, pid)]
    for signal_number, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        for pid in ours:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal_number)  # each leads its own process group, see spawn()
        deadline = time.monotonic() + patience
        while any(has_members(pid) for pid in ours) and time.monotonic() < deadline:
            time.sleep(0.02)
    (stack.directory / "stack.json").unlink(missing_ok=True)


def has_members(group: int) -> bool:
    """Whether the process group still has members, after reaping our own child."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(group, os.WNOHANG)
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def running(directory: Path) -> Stack | None:
    """The running stack in `directory`, or None; the remaining processes of a partly dead stack are stopped."""
    try:
        saved = json.loads((directory / "stack.json").read_text())
    except (OSError, ValueError):
        return None
    stack = Stack(directory, saved["ports"], saved["pids"])
    if len(stack.pids) == len(stack.ports) and all(is_running(name, pid) for name, pid in stack.pids.items()):
        return stack
    stop(stack)
    return None
