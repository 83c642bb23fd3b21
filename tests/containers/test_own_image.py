"""The image of endpoint/Dockerfile, built and run: it fulfils SageMaker's contract without root."""

import json
import shutil
import subprocess
import time
import uuid

import pytest

from conftest import ROOT, invoke, unavailable, wait_until_healthy

SECONDS_TO_BUILD = 300
PYTHON = ROOT / ".local/venvs/lambda/bin/python"  # same minor version as in the Dockerfile


def docker(*arguments, timeout=60):
    result = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.strip()


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """The image, built with the command in its Dockerfile; on a stand-in base, from wheels downloaded beforehand."""
    if not shutil.which("docker") or subprocess.run(["docker", "info"], capture_output=True).returncode:
        unavailable("needs a running Docker engine: on Debian, apt-get install docker.io mmdebstrap, then dockerd")
    base = subprocess.run([ROOT / "tools/python_image.sh"], capture_output=True, text=True)
    assert base.returncode == 0, base.stderr
    context, options = ROOT / "endpoint", []
    pinned = base_of_dockerfile()
    if subprocess.run(["docker", "image", "inspect", pinned], capture_output=True).returncode:  # there is a stand-in
        stand_in = f"BASE={pinned.partition('@')[0]}"
        context, options = (
            tmp_path_factory.mktemp("context"),
            ["--build-arg", stand_in, "--build-arg", "PIP_NO_INDEX=1"],
        )
        shutil.copytree(ROOT / "endpoint", context, dirs_exist_ok=True)
        download_wheels(context)
    tag = f"image-classification-test:{uuid.uuid4().hex}"
    docker("build", "--tag", tag, *options, str(context), timeout=SECONDS_TO_BUILD)
    try:
        yield tag
    finally:
        docker("image", "rm", "--force", tag)


def base_of_dockerfile():
    lines = (ROOT / "endpoint/Dockerfile").read_text().splitlines()
    return next(line.removeprefix("ARG BASE=") for line in lines if line.startswith("ARG BASE="))


def download_wheels(context):
    command = [PYTHON, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--require-hashes", "--only-binary=:all:", "--dest", context / "wheels"]
    subprocess.run([*command, "-r", context / "requirements.txt"], check=True, timeout=SECONDS_TO_BUILD)


class Container:
    """`docker run IMAGE serve`, as SageMaker runs it, but with a read-only root file system."""

    def __init__(self, image, model):
        options = ["--detach", "--read-only", "--publish", "127.0.0.1::8080", "--volume", f"{model}:/opt/ml/model:ro"]
        self.name = docker("run", *options, image, "serve")
        self.port = int(docker("port", self.name, "8080").splitlines()[0].rpartition(":")[2])

    def state(self):
        return json.loads(docker("inspect", "--format", "{{json .State}}", self.name))

    def wait(self):
        wait_until_healthy(self.port, lambda: self.state()["Running"], lambda: docker("logs", self.name))


@pytest.fixture(scope="module")
def container(image, opt_ml):
    for path in (opt_ml, opt_ml.parent, opt_ml.parent.parent):  # only the owner can read pytest's folders
        path.chmod(0o755)
    container = Container(image, opt_ml / "model")
    try:
        container.wait()
        yield container
    finally:
        docker("rm", "--force", container.name)


def test_its_predictions_equal_those_of_onnx_runtime_in_process(container, requests, check):
    check({name: invoke(container.port, request) for name, request in requests.items()})


def test_its_responses_are_identical_to_the_local_servers(container, requests, local_server):
    assert [invoke(container.port, request) for request in requests.values()] == [
        invoke(local_server, request) for request in requests.values()
    ]


def test_no_process_in_it_runs_as_root(container):
    processes = docker("top", container.name, "-eo", "pid,uid").splitlines()[1:]
    assert {line.split()[1] for line in processes} == {"1000"}


def test_dockers_health_check_succeeds(container):
    deadline = time.monotonic() + 60
    while container.state()["Health"]["Status"] == "starting" and time.monotonic() < deadline:
        time.sleep(0.5)
    assert container.state()["Health"]["Status"] == "healthy"


def test_docker_stop_exits_with_0_and_the_log_has_one_line_per_request(image, opt_ml, container, requests):
    other = Container(image, opt_ml / "model")
    try:
        other.wait()
        invoke(other.port, requests["image000"])
        docker("stop", "--time", "30", other.name)
        assert other.state()["ExitCode"] == 0
        log = docker("logs", other.name)
    finally:
        docker("rm", "--force", other.name)
    (line,) = [line for line in map(json.loads, log.splitlines()) if line["path"] == "/invocations"]
    size = len(requests["image000"].body)
    assert (line["method"], line["status"], line["received"]) == ("POST", 200, size)
