"""The make commands before they start anything: what they refuse, keep and say."""

import json
import os
import shutil
import subprocess
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from class_folders import write_classes
from documents import ROOT
from local import classify, command, deployment, results, run
from local.command import StackError, UsageError, lock, report_errors
from local.emulator import processes
from local.target import target
from tiny_model import write_tiny_model
from tools import install


def copy_of(folder, *names):
    """A checkout with only these files, and an empty .local."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / ".local").mkdir()
    return folder


def run_make(folder, *arguments):
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([""], "Which image? make classify IMAGE=path/to/image.jpg"),
        (["none.png"], "none.png is not a file: make classify IMAGE=path/to/image.jpg"),
        ([__file__, "--threshold", "high"], "THRESHOLD=high is not a number: use one above 0 and at most 1"),
        ([__file__, "--threshold", "75"], "THRESHOLD=75 is out of range: use a number above 0 and at most 1"),
        ([__file__, "--threshold", "nan"], "THRESHOLD=nan is out of range: use a number above 0 and at most 1"),
    ],
)
def test_a_wrong_value_is_a_usage_error_before_a_stack_is_looked_for(arguments, sentence, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["classify", *arguments])
    monkeypatch.setattr(classify, "shared", None)
    with pytest.raises(SystemExit):
        classify.main()
    assert capsys.readouterr().out == f"UsageError: {sentence}\n"


def test_commands_share_the_lock_and_a_change_excludes_them(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "LOCAL", tmp_path)
    by_review = "wait until it has finished, or, if it is make review, end it with Ctrl-C."
    with lock(shared=True), lock(shared=True), pytest.raises(StackError, match=by_review), lock():
        pass
    with lock(), pytest.raises(StackError, match="wait until it has finished"), lock(shared=True):
        pass


def test_make_accuracy_shares_a_running_stack_with_make_review(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "LOCAL", tmp_path)
    stack = processes.Stack(tmp_path, {"emulator": 1, "sagemaker": 2})
    monkeypatch.setattr(deployment, "existing", lambda: (stack, {"ReviewTableName": "table"}))
    with lock(shared=True), target(share=True) as found:
        assert (found.local, found.outputs) == (stack, {"ReviewTableName": "table"})
    with lock(shared=True), pytest.raises(StackError, match="wait until it has finished"), target():
        pass


def test_make_results_shares_a_running_stack_with_make_review(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "LOCAL", tmp_path)
    monkeypatch.setattr(deployment, "existing", lambda: (processes.Stack(tmp_path, {}), {}))
    monkeypatch.setattr(results, "rows", lambda *_: iter([]))
    monkeypatch.setattr(sys, "argv", ["results"])
    with lock(shared=True):
        results.main()
    assert capsys.readouterr().out == "\n0 images\n"


def test_a_file_that_cannot_be_written_is_named_without_a_traceback(capsys):
    with pytest.raises(SystemExit), report_errors():
        raise PermissionError(13, "Permission denied", ".local/lock")
    assert capsys.readouterr().out == ".local/lock cannot be written: Permission denied\n"
    with pytest.raises(FileNotFoundError), report_errors():  # a bug keeps its traceback
        raise FileNotFoundError(2, "No such file or directory", "x")


def test_the_limit_of_concurrent_functions_depends_on_the_cores_unless_it_is_given(monkeypatch):
    monkeypatch.delenv("LAMBDA_ACCOUNT_CONCURRENCY", raising=False)
    assert processes.account_concurrency() == processes.FUNCTIONS_PER_CORE * len(os.sched_getaffinity(0))
    monkeypatch.setenv("LAMBDA_ACCOUNT_CONCURRENCY", "100")
    assert processes.account_concurrency() == 100
    for wrong in ("0", "many", "-1", "1.5"):
        monkeypatch.setenv("LAMBDA_ACCOUNT_CONCURRENCY", wrong)
        with pytest.raises(UsageError, match=f"LAMBDA_ACCOUNT_CONCURRENCY={wrong} is not a number of functions"):
            processes.account_concurrency()


def test_clients_that_several_threads_make_have_the_stacks_credentials(tmp_path, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    before = dict(os.environ)
    stack = processes.Stack(tmp_path, {"emulator": 1, "sagemaker": 2})
    with ThreadPoolExecutor(8) as pool:
        clients = list(pool.map(stack.client, ["sqs"] * 20))
    assert all(client._request_signer._credentials for client in clients)
    assert {client.meta.endpoint_url for client in clients} == {"http://127.0.0.1:1"}
    assert dict(os.environ) == before


def test_a_syntax_error_in_a_function_is_shown_without_a_traceback(monkeypatch, tmp_path):
    (tmp_path / "RetrieveImageFunction").mkdir()
    (tmp_path / "RetrieveImageFunction/retrieve_image.py").write_text("def handler(:\n")
    (tmp_path / "template.yaml").touch()
    monkeypatch.setattr(deployment, "BUILD", tmp_path)
    monkeypatch.setattr(deployment, "sam", lambda *_: None)
    with pytest.raises(StackError, match=r"(?s)A function cannot be compiled:.*retrieve_image\.py.*SyntaxError"):
        deployment.build()


@pytest.mark.parametrize("packaged", [f"{1:016}", f"{2:016}"])
def test_a_packaged_model_that_is_not_deployed_is_mentioned(monkeypatch, tmp_path, capsys, packaged):
    monkeypatch.setattr(deployment, "model_archive", lambda: Path(f"models/{packaged}/model.tar.gz"))
    url = {"ParameterKey": "ModelDataUrl", "ParameterValue": f"s3://models/models/{1:016}/model.tar.gz"}
    deployment.warn_of_an_older_model({"Parameters": [url]})
    sentence = f"This is the deployed model {1:016}. The packaged model is {2:016}: make up deploys it, unless a model"
    assert " ".join(capsys.readouterr().out.split()) == (
        "" if packaged == f"{1:016}" else f"{sentence} was promoted; then make promote MODEL={2:016} does."
    )


def test_no_model_is_mentioned_if_the_stack_was_deployed_without_one(monkeypatch, capsys):
    monkeypatch.setattr(deployment, "model_archive", lambda: Path("models/1111/model.tar.gz"))
    deployment.warn_of_an_older_model({"Parameters": [{"ParameterKey": "ModelDataUrl", "ParameterValue": ""}]})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("version", "warned"), [("aws-cli/1.46.3 Python/3.11.7", True), ("aws-cli/2.31.0", False)])
def test_sourcing_the_environment_finds_sam_and_warns_of_version_1_of_the_aws_cli(
    monkeypatch, tmp_path, version, warned
):
    (tmp_path / "aws").write_text(f"#!/bin/sh\necho {version}\n")
    (tmp_path / "aws").chmod(0o755)
    monkeypatch.setattr(deployment, "LOCAL", tmp_path / ".local")
    monkeypatch.setattr(deployment, "OUTPUTS", tmp_path / ".local/outputs.json")
    monkeypatch.setattr(install, "LOCAL", tmp_path / ".local")
    (tmp_path / ".local").mkdir()
    deployment.write_files(processes.Stack(tmp_path, {"emulator": 1, "sagemaker": 2}), {})
    install.write_commands()
    script = f"PATH={tmp_path}:$PATH; source {tmp_path}/.local/env; command -v sam python3.13"
    shell = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert shell.stdout.splitlines() == [f"{tmp_path}/.local/bin/sam", f"{tmp_path}/.local/bin/python3.13"]
    warning = "aws is version 1, which sends SQS requests to AWS itself: install version 2, or add --endpoint-url "
    assert shell.stderr == (f"{warning}$AWS_ENDPOINT_URL.\n" if warned else "")


def test_python_3_13_on_path_has_the_pip_that_sam_build_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(install, "LOCAL", tmp_path)
    (tmp_path / "venvs").symlink_to(ROOT / ".local/venvs")
    install.write_commands()
    version = subprocess.run([tmp_path / "bin/python3.13", "-m", "pip", "--version"], capture_output=True, text=True)
    assert version.stdout.endswith("(python 3.13)\n")


@pytest.fixture
def own_model(tmp_path, monkeypatch):
    """A model of dark and light images, in .local/model of another checkout."""
    monkeypatch.setattr(run, "ROOT", tmp_path)
    return write_tiny_model(tmp_path / ".local/model")


def test_a_run_takes_images_of_the_models_own_test_data(own_model, tmp_path, capsys):
    folders = {part: str(write_classes(tmp_path / part, {"dark": 3, "light": 3})) for part in ("train", "test")}
    (own_model / "data.json").write_text(json.dumps(folders))
    images = run.test_images(run.load_folders(own_model))
    assert list(images) == [f"test/{label}/{number}.png" for label in ("dark", "light") for number in (0, 1)]
    assert images["test/dark/0.png"] == (tmp_path / "test/dark/0.png").read_bytes()
    assert capsys.readouterr().out.split("\n")[0] == "The model in .local/model knows dark, light."


def test_a_run_reads_folders_as_training_reads_them(tmp_path, monkeypatch, capsys):
    """With what systems leave in them, decomposed names, folders inside a class, and names that are not UTF-8."""
    monkeypatch.setattr(run, "ROOT", tmp_path)
    model = write_tiny_model(tmp_path / "model")
    labels = [unicodedata.normalize("NFC", "café"), "shoe [left]"]
    (model / "metadata.json").write_text(json.dumps({"labels": labels}))
    (model / "data.json").write_text(json.dumps({"train": str(tmp_path / "train")}))
    decomposed = unicodedata.normalize("NFD", "café")
    names = [f"{decomposed}/more/a.png", f"{decomposed}/Thumbs.db", "__MACOSX/b.png", "shoe [left]/x.png"]
    for name in [*names, os.fsdecode(b"shoe [left]/\xff.png")]:
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).write_bytes(b"image")
    images = run.test_images(run.load_folders(model))
    assert list(images) == [f"test/{labels[0]}/a.png", "test/shoe [left]/x.png", "test/shoe [left]/\\udcff.png"]
    assert "knows café, shoe [left]." in capsys.readouterr().out


def test_a_run_says_that_its_images_are_training_images_if_there_are_no_others(own_model, tmp_path, capsys):
    write_classes(tmp_path / "train", {"dark": 3, "light": 3})
    (own_model / "data.json").write_text(json.dumps({"train": str(tmp_path / "train")}))
    folders = run.load_folders(own_model)
    assert len(run.test_images(folders)) == 4 and run.ambiguous_images(None, "", folders) == {}
    assert "on which it was trained" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("data", ["gone", "other classes", "unknown"])
def test_a_run_refuses_images_of_classes_that_the_model_does_not_know(own_model, tmp_path, data):
    if data == "other classes":
        write_classes(tmp_path / "train", {"cat": 2, "dog": 2})
    if data != "unknown":  # without data.json only the digits could fit
        (own_model / "data.json").write_text(json.dumps({"train": str(tmp_path / "train")}))
    with pytest.raises(StackError, match=r"knows dark, light, but .* has no images of these classes"):
        run.load_folders(own_model)


def test_clean_keeps_models_of_your_own_and_says_how_to_delete_them(tmp_path):
    checkout = copy_of(tmp_path, "tools/clean.py", "Makefile")
    write_tiny_model(checkout / ".local/model")
    (checkout / ".local/training").mkdir()
    (checkout / ".local/logs").mkdir()
    (checkout / ".venv").mkdir()
    cleaned = run_make(checkout, "clean")
    assert sorted(path.name for path in (checkout / ".local").iterdir()) == ["model", "training"]
    assert not (checkout / ".venv").exists()
    assert "Kept your model in .local/model, which knows dark, light\n" in cleaned.stdout
    assert "rm -r .local/model .local/training" in cleaned.stdout


@pytest.mark.parametrize("model", ["the digits", "none"])
def test_clean_deletes_everything_if_there_is_no_model_of_your_own(tmp_path, model):
    checkout = copy_of(tmp_path, "tools/clean.py", "Makefile")
    if model == "the digits":
        write_tiny_model(checkout / ".local/model")
        train = checkout / ".local/data/digits/train"
        (checkout / ".local/model/data.json").write_text(json.dumps({"train": str(train)}))
    assert run_make(checkout, "clean").returncode == 0
    assert not (checkout / ".local").exists()


def test_down_and_clean_work_after_an_interrupted_installation(tmp_path):
    """.venv has a Python, but not yet its packages."""
    checkout = copy_of(tmp_path, "tools/clean.py", "Makefile")
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/bin/python").symlink_to("/bin/false")
    down = run_make(checkout, "down")
    assert (down.returncode, down.stdout) == (0, "The local stack was not running.\n")
    assert run_make(checkout, "clean").returncode == 0
    assert not (checkout / ".venv").exists()


def test_packaging_appends_to_a_log_and_keeps_earlier_archives(tmp_path):
    checkout = copy_of(tmp_path, "Makefile", "endpoint/package.py", "endpoint/inference.py", "endpoint/pixels.py")
    earlier = checkout / ".local/package/models/1111/model.tar.gz"
    write_tiny_model(checkout / ".local/model")
    earlier.parent.mkdir(parents=True)
    earlier.touch()
    (checkout / ".venv/bin").mkdir(parents=True)
    python = checkout / ".venv/bin/python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@" --lib none\n')
    python.chmod(0o755)
    log = tmp_path / "log"
    with log.open("w") as output:
        made = subprocess.run(
            ["make", ".local/package/archive.txt", "-o", ".local/model/metadata.json"], cwd=checkout, stdout=output
        )
    archive = (checkout / ".local/package/archive.txt").read_text().strip()
    assert made.returncode == 0 and earlier.exists()
    assert log.read_text().splitlines() == [f"{archive}: 0.0 MB", archive]


def test_a_script_that_fails_shows_the_end_of_its_captured_output(capsys):
    code = "print(*range(100), sep='\\n'); raise SystemExit(2)"
    with pytest.raises(StackError, match=r"failed with status 2: its message is above$"):
        command.run([sys.executable, "-c", code], os.environ, capture=True)
    assert capsys.readouterr().out.split() == [str(number) for number in range(80, 100)]
    assert command.run([sys.executable, "-c", code], os.environ, allowed=[2], capture=True).startswith("0\n1\n")


def test_a_second_sigterm_does_not_interrupt_the_clean_up(tmp_path):
    program = """
import sys, time
from local.command import report_errors
with report_errors():
    try:
        print("started", flush=True)
        time.sleep(60)
    finally:
        print("cleaning", flush=True)
        sys.stdin.readline()
        print("cleaned", flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    for line in ("started\n", "cleaning\n"):
        assert process.stdout.readline() == line
        process.terminate()
    output, _ = process.communicate("\n", timeout=30)
    assert (output, process.returncode) == ("cleaned\n", 143)
