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
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from botocore.client import BaseClient

from local.command import LOCAL, ROOT, StackError, UsageError, console

REGION = "us-east-1"
SECONDS_TO_START = 60
FUNCTIONS_PER_CORE = 3
CONCURRENCY = "LAMBDA_ACCOUNT_CONCURRENCY"
MODULES = {"xray": "xray_daemon", "sagemaker": "sagemaker_api", "emulator": "start"}
HELPERS = {"xray": "the collector of traces", "sagemaker": "the emulated SageMaker"}
NO_PROXY = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
ENVIRONMENT = threading.Lock()  # held by the thread that has replaced it
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
            "SAM_CLI_BETA_PACKAGE_PERFORMANCE": "1",  # compress a folder once for all functions: tools/share.py
            **NO_PROXY,
        }

    def client(self, service: str, **options: Any) -> BaseClient:
        """A boto3 client for this stack, unaffected by the user's AWS variables and files."""
        with ENVIRONMENT, replaced_environment(clean_environment() | self.aws_variables):
            return boto3.Session().client(service, **options)

    def save(self) -> None:
        (self.directory / "stack.json").write_text(json.dumps({"ports": self.ports, "pids": self.pids}))


def clean_environment() -> dict[str, str]:
    """The user's environment without variables that would reconfigure AWS clients, SAM or Python."""
    foreign = ("AWS_", "SAM_CLI_", "SAMCLI_", "PYTHON", "VIRTUAL_ENV", "PIP_USER", "PIP_TARGET", "PIP_PREFIX")
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
    for name in HELPERS:
        start_helper(stack, name)
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
        "LAMBDA_WARM_TTL_SECONDS": "10",  # for each function's processes after the first, of 50 MB each
        "AWS_LAMBDA_LOG_FORMAT": "JSON",
        "AWS_LAMBDA_LOG_LEVEL": "INFO",  # Lambda sets it from ApplicationLogLevel; LOG_LEVEL above is the emulator's
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


def start_helper(stack: Stack, name: str) -> None:
    """Start a process other than the emulator: xray keeps its file, sagemaker the endpoints that it finds."""
    options = {
        "xray": ["--output", stack.directory / "xray.jsonl"],
        "sagemaker": ["--work-dir", stack.directory / "sagemaker"],
    }[name]
    command = [sys.executable, *module(name), "--port", stack.ports[name], *options]
    spawn(stack, name, command, clean_environment() | stack.aws_variables)


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
    with (stack.directory / f"{name}.log").open("ab") as log:
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
    end([pid for name, pid in stack.pids.items() if is_running(name, pid) or is_orphaned(pid)])
    (stack.directory / "stack.json").unlink(missing_ok=True)


def stop_remains(directory: Path) -> None:
    """Stop what a killed command has left running in the directory."""
    with contextlib.suppress(OSError, ValueError):
        saved = json.loads((directory / "stack.json").read_text())
        stop(Stack(directory, saved["ports"], saved["pids"]))


def end(groups: list[int]) -> None:
    """Stop process groups, by force if necessary, and wait until they have exited."""
    for signal_number, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        for group in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal_number)  # each process of the stack leads its own group, see spawn()
        deadline = time.monotonic() + patience
        while any(has_members(group) for group in groups) and time.monotonic() < deadline:
            time.sleep(0.02)


def is_orphaned(group: int) -> bool:
    """Whether the process that led this group is gone but its children are not, as functions of a killed emulator."""
    return not Path(f"/proc/{group}").exists() and has_members(group)


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
    """The running stack in `directory`, or None. Helpers that died are restarted; without the emulator all is lost."""
    try:
        saved = json.loads((directory / "stack.json").read_text())
    except (OSError, ValueError):
        return None
    stack = Stack(directory, saved["ports"], saved["pids"])
    dead = [name for name in stack.ports if name not in stack.pids or not is_running(name, stack.pids[name])]
    if "emulator" in dead:
        log = stack.directory / "emulator.log"
        console.print(
            f"The local stack has died. Its memory is lost: buckets, executions, queues, endpoints and logs; {log} has "
            "its last lines. make up starts a new one, with the current template and model: upload the images again.",
            markup=False,
        )
        stop(stack)
        return None
    for name in dead:
        end([pid for pid in [stack.pids.get(name)] if pid and is_orphaned(pid)])
        start_helper(stack, name)
        wait_for_port(stack, name)
        console.print(f"Restarted {HELPERS[name]}, which had died; see {stack.directory / name}.log", markup=False)
    return stack


def wait_for_port(stack: Stack, name: str) -> None:
    """Wait until a restarted helper is listening. UDP has no connections: its process only has to stay."""
    deadline = time.monotonic() + SECONDS_TO_START
    while name != "xray":
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", stack.ports[name]), 1):
            return
        if not is_running(name, stack.pids[name]) or time.monotonic() > deadline:
            log = stack.directory / f"{name}.log"
            raise StackError(f"{HELPERS[name]} died and does not start again:\n{tail(log)}")
        time.sleep(0.05)
