"""The archive on the server of SageMaker's scikit-learn image, with its packages, under serverless's constraints.

The server runs as a user other than root, without a network, and can write only to /tmp. AWS documents that a container
on a serverless endpoint may lack the permission to write files:
https://docs.aws.amazon.com/sagemaker/latest/dg/serverless-endpoints-troubleshooting.html
"""

import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import ROOT, invoke, unavailable
from documents import RESOURCES

VENV = ROOT / ".local/venvs/sklearn-serving"
WITHOUT_PRIVILEGES = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]


@pytest.fixture(scope="module")
def unshare():
    """The command that runs a process without network access, with mounts of its own."""
    if platform.machine() != "x86_64":
        pytest.skip("the archive's lib/ is for x86_64")
    if ROOT.is_relative_to("/tmp"):
        pytest.skip("the server may write below /tmp, so the checkout must be elsewhere to be read-only")
    if not (VENV / "bin/gunicorn").exists():
        unavailable("needs the image's packages for Python 3.12: make test-containers installs them")
    command = ["unshare", "--net", "--mount"] + (["--map-root-user"] if os.geteuid() else [])
    probe = [*command, *WITHOUT_PRIVILEGES, "true"]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True).returncode:
        unavailable("needs namespaces: run make test-containers as root, or allow user namespaces")
    return command


@pytest.fixture(scope="module")
def serve(unshare, opt_ml, requests, tmp_path_factory):
    """A function that runs the server with the template's variables, but for `changed`: its process and responses."""
    sent, model = tmp_path_factory.mktemp("requests"), opt_ml / "model"
    for name, request in requests.items():
        (sent / name).write_bytes(request.content_type.encode() + b"\n" + request.body)
    (sent / "broken").write_bytes(b"image/png\nno image")
    container = RESOURCES["Model"]["Properties"]["PrimaryContainer"]["Environment"]
    variables = {
        name: (value["Fn::If"][2] if isinstance(value, dict) else value).replace("/opt/ml/model", str(model))
        for name, value in container.items()
    }
    machine = {
        "PATH": f"{VENV / 'bin'}:{os.environ['PATH']}",
        "HOME": "/nonexistent",
        "PIP_CONFIG_FILE": os.devnull,
        "PYTHONDONTWRITEBYTECODE": "1",
        "SAGEMAKER_BIND_TO_PORT": "8080",
    }

    def serve(**changed):
        received, base = tmp_path_factory.mktemp("responses"), tmp_path_factory.mktemp("base")
        environment = {
            name: value.replace("/tmp/sagemaker", str(base)) for name, value in (machine | variables | changed).items()
        }
        environment["PYTHONPATH"] += f":{Path(__file__).parent}"
        command = [*unshare, VENV / "bin/python", Path(__file__).with_name("sklearn_image.py"), model, sent, received]
        server = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=150)
        return server, received

    return serve


@pytest.fixture(scope="module")
def responses(serve):
    """A folder with the server's responses."""
    server, received = serve()
    assert server.returncode == 0, server.stdout + server.stderr
    return received


@pytest.mark.parametrize(
    ("variable", "default", "error"),
    [
        ("SAGEMAKER_BASE_DIR", "/opt/ml", "/opt/ml"),
        ("PIP_TARGET", "", "Read-only file system"),
        ("SAGEMAKER_USE_NGINX", "true", "/etc/sagemaker-nginx.conf"),
    ],
)
def test_it_does_not_start_without_a_variable_of_the_template(serve, variable, default, error):
    server, _ = serve(**{variable: default})
    assert server.returncode != 0
    assert error in server.stdout + server.stderr


def read(folder, name):
    response = json.loads((folder / name).read_text())
    return response["status"], response["content_type"], response["body"]


def test_its_predictions_equal_those_of_onnx_runtime_in_process(responses, requests, check):
    check({name: read(responses, name) for name in requests})


def test_its_response_bodies_are_identical_to_the_local_servers(responses, requests, local_server):
    assert {name: read(responses, name)[2] for name in requests} == {
        name: invoke(local_server, request)[2] for name, request in requests.items()
    }


def test_it_loads_the_archives_lib_and_the_images_numpy(responses, opt_ml):
    loaded = (responses / "libraries").read_text().splitlines()
    homes = {
        name: {Path(path[: path.index(f"/{name}/")]) for path in loaded if f"/{name}/" in path}
        for name in ("onnxruntime", "PIL", "numpy")
    }
    lib = opt_ml / "model/lib"
    assert homes == {"onnxruntime": {lib}, "PIL": {lib}, "numpy": {VENV.resolve() / "lib/python3.12/site-packages"}}


def test_an_error_is_a_500_in_html_which_is_why_the_project_has_its_own_server(responses):
    assert read(responses, "broken")[:2] == (500, "text/html; charset=utf-8")
