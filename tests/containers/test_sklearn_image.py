"""The archive on the server of SageMaker's scikit-learn image, with the image's packages and no network."""

import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import ROOT, invoke, unavailable

VENV = ROOT / ".local/venvs/sklearn-serving"


@pytest.fixture(scope="module")
def unshare():
    """The command that runs a process without network access."""
    if platform.machine() != "x86_64":
        pytest.skip("the archive's lib/ is for x86_64")
    if not (VENV / "bin/gunicorn").exists():
        unavailable("needs the image's packages for Python 3.12: make test-containers installs them")
    command = ["unshare", "--net"] + (["--map-root-user"] if os.geteuid() else [])
    if not shutil.which("unshare") or subprocess.run([*command, "true"], capture_output=True).returncode:
        unavailable("needs a network namespace: run make test-containers as root, or allow user namespaces")
    return command


@pytest.fixture(scope="module")
def responses(unshare, opt_ml, requests, tmp_path_factory):
    """A folder with the server's responses. Its environment is the one that template.yaml defines for SageMaker."""
    sent, received = tmp_path_factory.mktemp("requests"), tmp_path_factory.mktemp("responses")
    for name, request in requests.items():
        (sent / name).write_bytes(request.content_type.encode() + b"\n" + request.body)
    (sent / "broken").write_bytes(b"image/png\nno image")
    model = opt_ml / "model"
    environment = {
        "PATH": f"{VENV / 'bin'}:{os.environ['PATH']}",
        "HOME": str(opt_ml),
        "SAGEMAKER_BASE_DIR": str(opt_ml),
        "SAGEMAKER_PROGRAM": "inference.py",
        "SAGEMAKER_SUBMIT_DIRECTORY": str(model / "code"),
        "PYTHONPATH": f"{model / 'lib'}:{Path(__file__).parent}",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_CONFIG_FILE": os.devnull,
        "PYTHONDONTWRITEBYTECODE": "1",
        "SAGEMAKER_BIND_TO_PORT": "8080",
        "SAGEMAKER_USE_NGINX": "false",
    }
    command = [*unshare, VENV / "bin/python", Path(__file__).with_name("sklearn_image.py"), sent, received]
    try:
        server = subprocess.run(command, env=environment, cwd=opt_ml, capture_output=True, text=True, timeout=150)
        assert server.returncode == 0, server.stdout + server.stderr
        yield received
    finally:  # the server's start installed the code with pip
        uninstall = [VENV / "bin/python", "-m", "pip", "uninstall", "--quiet", "--yes", "inference"]
        subprocess.run(uninstall, check=True, capture_output=True)


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
    assert homes == {"onnxruntime": {lib}, "PIL": {lib}, "numpy": {VENV / "lib/python3.12/site-packages"}}


def test_an_error_is_a_500_in_html_which_is_why_the_project_has_its_own_server(responses):
    assert read(responses, "broken")[:2] == (500, "text/html; charset=utf-8")
