"""The archive in the server of SageMaker's scikit-learn image, from the image's own packages, without a network."""

import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import ROOT, ask, unavailable

VENV = ROOT / ".local/venvs/sklearn-serving"


@pytest.fixture(scope="module")
def unshare():
    """The command that cuts a process off from the network."""
    if platform.machine() != "x86_64":
        pytest.skip("the archive's lib/ is for x86_64")
    if not (VENV / "bin/gunicorn").exists():
        unavailable("needs the image's packages in a Python 3.12: make test-containers sets them up")
    command = ["unshare", "--net"] + (["--map-root-user"] if os.geteuid() else [])
    if not shutil.which("unshare") or subprocess.run([*command, "true"], capture_output=True).returncode:
        unavailable("needs a network namespace: run make test-containers as root, or allow user namespaces")
    return command


@pytest.fixture(scope="module")
def answers(unshare, opt_ml, requests, tmp_path_factory):
    """A folder with what the image's server answered; it is started as template.yaml has SageMaker start it."""
    asked, answered = tmp_path_factory.mktemp("requests"), tmp_path_factory.mktemp("answers")
    for name, request in requests.items():
        (asked / name).write_bytes(request.content_type.encode() + b"\n" + request.body)
    (asked / "broken").write_bytes(b"image/png\nno image")
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
    command = [*unshare, VENV / "bin/python", Path(__file__).with_name("sklearn_image.py"), asked, answered]
    try:
        server = subprocess.run(command, env=environment, cwd=opt_ml, capture_output=True, text=True, timeout=150)
        assert server.returncode == 0, server.stdout + server.stderr
        yield answered
    finally:  # pip has installed the code
        uninstall = [VENV / "bin/python", "-m", "pip", "uninstall", "--quiet", "--yes", "inference"]
        subprocess.run(uninstall, check=True, capture_output=True)


def answer(folder, name):
    content = json.loads((folder / name).read_text())
    return content["status"], content["content_type"], content["body"]


def test_it_answers_as_onnx_in_process_does(answers, requests, check):
    check({name: answer(answers, name) for name in requests})


def test_it_answers_word_for_word_as_the_local_server_does(answers, requests, local_server):
    assert {name: answer(answers, name)[2] for name in requests} == {
        name: ask(local_server, request)[2] for name, request in requests.items()
    }


def test_it_runs_on_the_archives_lib_and_its_own_numpy(answers, opt_ml):
    loaded = (answers / "libraries").read_text().splitlines()
    homes = {
        name: {Path(path[: path.index(f"/{name}/")]) for path in loaded if f"/{name}/" in path}
        for name in ("onnxruntime", "PIL", "numpy")
    }
    lib = opt_ml / "model/lib"
    assert homes == {"onnxruntime": {lib}, "PIL": {lib}, "numpy": {VENV / "lib/python3.12/site-packages"}}


def test_an_error_is_a_500_in_html_which_is_why_the_project_has_its_own_server(answers):
    assert answer(answers, "broken")[:2] == (500, "text/html; charset=utf-8")
