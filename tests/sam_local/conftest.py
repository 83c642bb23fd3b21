"""Run the functions in Docker with the SAM CLI, connected to the local stack's S3 and endpoint."""

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from local import invoke
from local.command import ROOT
from local.deployment import deploy, model_archive, upload_model
from local.emulator import processes
from local.emulator.processes import REGION, free_port

SECONDS_TO_INVOKE = 120
SECONDS_TO_START = 60


@dataclass
class Invocation:
    """The result or error of a function, and the output of the function and of SAM."""

    payload: Any
    log: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The structured lines of the log, which CloudWatch parses for their level and fields."""
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]


class SamLocal:
    """`sam local` on the template copy that has the local stack's addresses."""

    def __init__(self, template: Path, environment: dict[str, str]):
        self.template, self.environment = template, environment

    def invoke(self, function: str, event: Path) -> Invocation:
        """`sam local invoke`: a container for a single event."""
        command = invoke.sam_command("invoke", self.template, function, "--event", str(event))
        result = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=SECONDS_TO_INVOKE
        )
        assert result.returncode == 0, result.stderr
        return Invocation(json.loads(result.stdout), result.stderr)


class Functions:
    """`sam local start-lambda`: warm containers behind the Lambda API."""

    def __init__(self, sam: SamLocal, log: Path):
        self.log = log
        port = free_port(socket.SOCK_STREAM)
        options = ["--port", str(port), "--warm-containers", "LAZY", "--no-watch"]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                invoke.sam_command("start-lambda", sam.template, *options),
                cwd=ROOT, env=sam.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's `&` ignores SIGINT
            )  # fmt: skip
        self.url = f"http://127.0.0.1:{port}"
        self.client = boto3.client(
            "lambda", endpoint_url=self.url, region_name=REGION, aws_access_key_id="x", aws_secret_access_key="x",
            config=Config(read_timeout=SECONDS_TO_INVOKE, retries={"total_max_attempts": 1}),
        )  # fmt: skip

    def wait(self) -> None:
        deadline = time.monotonic() + SECONDS_TO_START
        while True:
            try:
                urllib.request.urlopen(self.url, timeout=2)
            except urllib.error.HTTPError:  # it responds, although the path does not exist
                return
            except OSError:
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.1)

    def invoke(self, function: str, event: Any) -> Invocation:
        before = self.log.stat().st_size
        response = self.client.invoke(FunctionName=function, Payload=json.dumps(event))
        payload = json.loads(response["Payload"].read())
        return Invocation(payload, self.log.read_bytes()[before:].decode())

    def stop(self) -> None:
        """Stop it like Ctrl-C, which stops its containers; then remove any container that is left."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        finally:
            self.process.kill()
            containers = re.findall(r"SAM_CONTAINER_ID: (\w+)", self.log.read_text())
            subprocess.run(["docker", "rm", "--force", *containers], capture_output=True)


@pytest.fixture(scope="session")
def docker():
    """A running Docker engine and the base image of the functions."""
    if problem := invoke.docker_problem():
        if os.environ.get("CI") == "true":
            pytest.fail(problem)
        pytest.skip(problem)
    invoke.build_base_image()


@pytest.fixture(scope="session")
def stack(docker, tmp_path_factory):
    """The local stack, with template.yaml deployed and the image of events/ uploaded."""
    stack = processes.start(tmp_path_factory.mktemp("stack"))
    try:
        model = upload_model(stack, model_archive())
        deploy(stack, EndpointType="serverless", ModelDataUrl=model)
        invoke.upload_sample(stack)
        yield stack
    finally:
        processes.stop(stack)


@pytest.fixture(scope="session")
def sam(stack, tmp_path_factory):
    with invoke.forwarded(stack) as variables:
        template = invoke.template_with(variables, tmp_path_factory.mktemp("template"))
        yield SamLocal(template, invoke.environment(stack, variables))


@pytest.fixture(scope="session")
def functions(sam, tmp_path_factory):
    functions = Functions(sam, tmp_path_factory.mktemp("start_lambda") / "log")
    try:
        functions.wait()
        yield functions
    finally:
        functions.stop()
