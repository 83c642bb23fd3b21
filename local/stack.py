"""The local stack: its processes, and template.yaml deployed into them.  python local/stack.py build|up|down

xray.py        collects what the functions trace
sagemaker.py   SageMaker's APIs; starts endpoint/server.py for each endpoint
emulator.py    S3, EventBridge, Step Functions, Lambda, SQS, CloudFormation ...
"""

import argparse
import contextlib
import dataclasses
import fcntl
import json
import os
import platform
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

import boto3
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
LOCAL = ROOT / ".local"
BUILD = LOCAL / "sam/build"  # as samconfig.toml has it
STACK_NAME = "image-classification"
REGION = "us-east-1"
MODEL_BUCKET = "models"  # outside the stack, as on AWS
SECONDS_TO_START = 60
NO_PROXY = {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
os.environ |= NO_PROXY  # everything here is on this machine, whatever proxy the user has
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


class StackError(Exception):
    """The local stack can't do what was asked; the message says why and what to do."""


@dataclasses.dataclass
class Stack:
    """A running local stack: where its files are, its ports, and its processes by name."""

    directory: Path
    ports: dict[str, int]
    pids: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['emulator']}"

    @property
    def aws_variables(self) -> dict[str, str]:
        """What points any AWS client at this stack, and at nothing else."""
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

    def client(self, service: str):
        """A boto3 client of this stack, whatever AWS variables and files the user has."""
        with replaced_environment(clean_environment() | self.aws_variables):
            return boto3.Session().client(service)

    def save(self) -> None:
        (self.directory / "stack.json").write_text(json.dumps({"ports": self.ports, "pids": self.pids}))


def clean_environment() -> dict[str, str]:
    """The user's environment without what could lead an AWS client, SAM or a Python astray."""
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


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Say what is under way, and how long it took."""
    started = time.monotonic()
    with console.status(f"{title} ..."):
        yield
    console.print(f"{title} [dim]({time.monotonic() - started:.1f} s)[/dim]")


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """One command at a time works in .local."""
    LOCAL.mkdir(exist_ok=True)
    with (LOCAL / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackError("Another make command is using the local stack: wait for it to end.") from None
        yield


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(directory: Path, **variables: str) -> Stack:
    """Start the processes, with their files in `directory`; `variables` go to the emulator and to the functions."""
    shutil.rmtree(directory, ignore_errors=True)  # what an earlier one left
    (directory / "tmp").mkdir(parents=True)
    tcp, udp = socket.SOCK_STREAM, socket.SOCK_DGRAM
    stack = Stack(directory, {"emulator": free_port(tcp), "sagemaker": free_port(tcp), "xray": free_port(udp)})
    environment = clean_environment() | stack.aws_variables
    xray = ["--port", stack.ports["xray"], "--output", directory / "xray.jsonl"]
    spawn(stack, "xray", [sys.executable, "local/xray.py", *xray], environment)
    sagemaker = ["--port", stack.ports["sagemaker"], "--work-dir", directory / "sagemaker"]
    spawn(stack, "sagemaker", [sys.executable, "local/sagemaker.py", *sagemaker], environment)
    emulator = {
        "PATH": os.environ["PATH"],  # the functions inherit all of this, and must see nothing else of the user's
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
        "AUTH": "true",  # a function may do what its role may
        "LAMBDA_PYTHON": str(LOCAL / "venvs/lambda/bin/python"),
        "AWS_LAMBDA_LOG_FORMAT": "JSON",
        "AWS_XRAY_DAEMON_ADDRESS": f"127.0.0.1:{stack.ports['xray']}",
        "AWS_XRAY_CONTEXT_MISSING": "LOG_ERROR",
    }
    python = LOCAL / "venvs/emulator/bin/python"
    spawn(stack, "emulator", [python, "local/emulator.py"], stack.aws_variables | emulator | variables)
    try:
        wait_until_healthy(stack)
    except BaseException:
        stop(stack)
        raise
    return stack


def spawn(stack: Stack, name: str, command: list, environment: dict[str, str]) -> None:
    """Start a process that outlives a Ctrl-C in this terminal: stop() ends it."""
    with (stack.directory / f"{name}.log").open("wb") as log:
        streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        process = subprocess.Popen([*map(str, command)], cwd=ROOT, env=environment, start_new_session=True, **streams)
    stack.pids[name] = process.pid
    stack.save()


def is_running(name: str, pid: int) -> bool:
    """Whether the process is still there, and still ours."""
    try:
        return f"local/{name}.py" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def wait_until_healthy(stack: Stack) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        for name, pid in stack.pids.items():
            if os.waitpid(pid, os.WNOHANG)[0]:
                log = stack.directory / f"{name}.log"
                raise StackError(f"{name} ended at its start:\n{tail(log)}")
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
    """End the processes and the functions that they started, and wait until they are gone."""
    ours = [pid for name, pid in stack.pids.items() if is_running(name, pid)]
    for signal_number, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        for pid in ours:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal_number)  # each leads a group of its own: spawn()
        deadline = time.monotonic() + patience
        while any(has_members(pid) for pid in ours) and time.monotonic() < deadline:
            time.sleep(0.02)
    (stack.directory / "stack.json").unlink(missing_ok=True)


def has_members(group: int) -> bool:
    """Whether a process of the group is left; our own children are cleared away first."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(group, os.WNOHANG)
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def running(directory: Path) -> Stack | None:
    """The stack whose files are in `directory`, if it runs. What is left of one that died is ended."""
    try:
        saved = json.loads((directory / "stack.json").read_text())
    except (OSError, ValueError):
        return None
    stack = Stack(directory, saved["ports"], saved["pids"])
    if len(stack.pids) == len(stack.ports) and all(is_running(name, pid) for name, pid in stack.pids.items()):
        return stack
    stop(stack)
    return None


def sam(stack: Stack | None, *arguments: str) -> None:
    """Run the SAM CLI; without a stack, with no credentials at all."""
    environment = clean_environment() | {
        "SAM_CLI_TELEMETRY": "0",
        "SAM_CLI_POLL_DELAY": "0.1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_DEFAULT_REGION": REGION,
    }
    if stack:
        environment |= stack.aws_variables
    # sam build packs with the Python of the functions' runtime that it finds on PATH.
    environment["PATH"] = f"{LOCAL / 'venvs/lambda/bin'}:{environment['PATH']}"
    config = ["--config-file", str(ROOT / "samconfig.toml"), "--config-env", "local"]
    command = [LOCAL / "venvs/sam/bin/sam", *arguments, *config]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    log = LOCAL / "logs" / f"sam-{arguments[0]}.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text(result.stdout + result.stderr)
    if result.returncode:
        raise StackError(f"sam {arguments[0]} failed:\n{tail(log, 30)}")


def architecture() -> str:
    """This machine's, as Lambda calls it."""
    machine = platform.machine()
    if machine not in ("x86_64", "aarch64"):
        raise StackError(
            f"Lambda has no runtime for {machine} processors: the functions can't be built for this machine."
        )
    return {"aarch64": "arm64"}.get(machine, machine)


def build() -> None:
    """sam build, for this machine, into a folder of its own; compiled, as `make build` does for AWS."""
    with step("Building the functions with sam build"):
        sam(None, "build", "--parameter-overrides", f"Architecture={architecture()}")
        subprocess.run([LOCAL / "venvs/lambda/bin/python", ROOT / "local/compile.py", BUILD], check=True)


def upload_model(stack: Stack, archive: Path) -> str:
    """Put model.tar.gz, in its folder that is named by its content, into the emulated S3: its URL."""
    s3 = stack.client("s3")
    s3.create_bucket(Bucket=MODEL_BUCKET)
    key = f"models/{archive.parent.name}/{archive.name}"
    s3.upload_file(str(archive), MODEL_BUCKET, key)
    return f"s3://{MODEL_BUCKET}/{key}"


def deploy(stack: Stack, stack_name: str = STACK_NAME, build: Path = BUILD, **parameters: str) -> dict[str, str]:
    """sam deploy what was built: the outputs of the CloudFormation stack."""
    overrides = [f'{key}="{value}"' for key, value in ({"Architecture": architecture()} | parameters).items()]
    template = ["--template-file", str(build / "template.yaml")]
    sam(stack, "deploy", "--stack-name", stack_name, *template, "--parameter-overrides", *overrides)
    (described,) = stack.client("cloudformation").describe_stacks(StackName=stack_name)["Stacks"]
    return {output["OutputKey"]: output["OutputValue"] for output in described["Outputs"]}


def model_archive() -> Path:
    """What `make package-model` made."""
    try:
        return ROOT / (LOCAL / "package/archive.txt").read_text().strip()
    except OSError:
        raise StackError("There is no packaged model: run make package-model first.") from None


def up(directory: Path = LOCAL / "stack") -> tuple[Stack, dict[str, str], bool]:
    """The stack with the current template and model: the stack, its outputs, and whether it had to be started."""
    stack = running(directory)
    started = stack is None
    stack = stack or start(directory)
    try:
        with step("Deploying template.yaml with sam deploy"):
            model = upload_model(stack, model_archive())
            outputs = deploy(stack, EndpointType="serverless", ModelDataUrl=model)
    except BaseException:
        if started:
            stop(stack)
        raise
    write_files(stack, outputs)
    return stack, outputs, started


def write_files(stack: Stack, outputs: dict[str, str]) -> None:
    """.local/env, to source, and .local/outputs.json."""
    exports = "".join(f"export {name}={value}\n" for name, value in stack.aws_variables.items())
    sam_cli = LOCAL / "bin" / "sam"
    sam_cli.parent.mkdir(exist_ok=True)
    sam_cli.unlink(missing_ok=True)
    sam_cli.symlink_to(LOCAL / "venvs/sam/bin/sam")
    (LOCAL / "env").write_text(
        "# source .local/env points aws, sam and boto3 at the local stack. Written by make up.\n"
        "unset $(env | grep -o '^AWS_[A-Za-z0-9_]*')\n"
        f'{exports}export PATH="$PATH:{sam_cli.parent}"\n'
    )
    (LOCAL / "outputs.json").write_text(json.dumps(outputs, indent=2) + "\n")


def down(directory: Path = LOCAL / "stack") -> bool:
    """Stop the stack: whether there was one."""
    stack = running(directory)
    if stack:
        stop(stack)
    for name in ("env", "outputs.json"):
        (LOCAL / name).unlink(missing_ok=True)
    return stack is not None


def interruptible() -> None:
    """Let SIGTERM, as Ctrl-C does, run the clean-up."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Print what goes wrong as a sentence, and leave with 1."""
    interruptible()
    try:
        yield
    except StackError as error:
        console.print(f"[bold red]{type(error).__name__}[/]", end=": ")
        console.print(str(error), markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("\nInterrupted.")
        sys.exit(130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["build", "up", "down"])
    command = parser.parse_args().command
    with told(), lock():
        if command == "build":
            return build()
        if command == "down":
            return console.print("The local stack is stopped." if down() else "The local stack was not running.")
        stack, outputs, _ = up()
        console.print(f"\nThe local stack is up at {stack.url}.\n")
        console.print("  source .local/env            then aws, sam and boto3 talk to it")
        console.print("  make classify IMAGE=path     classify a picture of yours")
        console.print("  make down                    stop it\n")
        console.print_json(data=outputs)


if __name__ == "__main__":
    main()
