"""A realtime endpoint with a shadow model, deployed by sam deploy, and make shadow on what it captured."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from endpoint import package
from local import deployment
from local.command import LOCAL, ROOT
from local.deployment import deploy, model_archive, upload_model
from local.emulator.processes import clean_environment
from local.target import Target
from workflow import DIGITS, Workflow, wait_for

NAME = "shadowing"
ENDPOINT = f"{NAME}-realtime"
KEY = "arn:aws:kms:us-east-1:000000000000:key/own"


@pytest.fixture(scope="module")
def challenger(workflow, stack, tmp_path_factory):
    """The packaged model, which calls a seven an eight."""
    folder = tmp_path_factory.mktemp("challenger")
    shutil.copytree(LOCAL / "model", folder / "model")
    metadata = json.loads((folder / "model/metadata.json").read_text())
    metadata["labels"] = [{"7": "8", "8": "7"}.get(label, label) for label in metadata["labels"]]
    (folder / "model/metadata.json").write_text(json.dumps(metadata))
    return upload_model(stack, package.build(folder / "model", [], folder))


@pytest.fixture(scope="module")
def shadowing(workflow, stack, challenger):
    model = upload_model(stack, model_archive())
    parameters = {"DataCaptureUrl": "s3://models/captured", "ShadowModelDataUrl": challenger, "AuditRate": "1"}
    outputs = deploy(stack, NAME, EndpointType="realtime", ModelDataUrl=model, **parameters)
    yield Workflow(stack, outputs)
    stack.client("cloudformation").delete_stack(StackName=NAME)


def digit(label, number=0):
    return sorted((DIGITS / "test" / label).iterdir())[number].read_bytes()


def captured(stack, variant):
    s3, prefix = stack.client("s3"), f"captured/{ENDPOINT}/{variant}/"
    rows = s3.list_objects_v2(Bucket="models", Prefix=prefix).get("Contents", [])
    return [line for row in rows for line in s3.get_object(Bucket="models", Key=row["Key"])["Body"].iter_lines()]


def make_shadow(stack, folder):
    command = [sys.executable, "-m", "local.shadow", f"--stack={NAME}", f"--output={folder}"]
    environment = clean_environment() | stack.aws_variables
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def server_of(variant_number):
    """The process ID of an endpoint's server: 0 of the production variant, 1 of the shadow variant."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        folders = [text for text in variables if text.startswith("SM_MODEL_DIR=") and f"/{ENDPOINT}-" in text]
        found |= {folder: int(process.name) for folder in folders}
    return found[sorted(found)[variant_number]]


def test_answers_of_both_models_are_compared_and_reviews_give_the_verdict(stack, shadowing, tmp_path):
    images = {"seven": digit("7"), "another seven": digit("7", 1), "one": digit("1"), "zero": digit("0")}
    executions = {name: shadowing.classify(f"{name}.png", image) for name, image in images.items()}
    assert executions["seven"].output["label"] == "7"
    assert executions["seven"].output["endpoint"] == {"name": ENDPOINT, "variant": "AllTraffic"}
    for name, label in {"seven": "7", "one": "1"}.items():
        shadowing.reviews.decide(shadowing.review_of(executions[name]), "ada", "label", label)
    for variant in ("AllTraffic", "Shadow"):
        wait_for(lambda variant=variant: len(captured(stack, variant)) == len(images))

    ended = make_shadow(stack, tmp_path / "shadow")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for sentence in (
        "4 images answered by both models",
        "same label: 2 (50.00%)",
        "  7 -> 8: 2 images",
        "accepted by both 4, by the champion alone 0, by the challenger alone 0",
        "champion: 4 requests, 0 errors, model latency ",
        "challenger: 4 requests, 0 errors, model latency ",
        "images: 2 images",
        "gains 0 images and loses 1",
        "Verdict: undecided",
    ):
        assert sentence in ended.stdout, ended.stdout
    comparison = json.loads((tmp_path / "shadow/comparison.json").read_text())
    assert comparison["sets"][0]["champion"]["accuracy"] == 1
    assert comparison["challenger"]["labels"][7] == "8"
    page = (tmp_path / "shadow/report.html").read_text()
    assert "All captured images: 4" in page
    assert page.count('src="data:image/png') == 3  # both sevens, and the reviewed one as a lost image


def test_make_up_after_a_trial_deploys_a_serverless_endpoint_without_the_shadow(
    stack, workflow, challenger, monkeypatch, tmp_path, capsys
):
    """With .local elsewhere, as make up writes .local/env."""
    for name in ("venvs", "package"):
        (tmp_path / name).symlink_to(LOCAL / name)
    monkeypatch.setattr(deployment, "LOCAL", tmp_path)
    monkeypatch.setattr(deployment, "OUTPUTS", tmp_path / "outputs.json")
    model = upload_model(stack, model_archive())
    trial = {"DataCaptureUrl": "s3://models/captured", "ShadowModelDataUrl": challenger, "KmsKeyArn": KEY}
    deploy(stack, EndpointType="realtime", ModelDataUrl=model, NetworkIsolation="true", **trial)
    _, outputs = deployment.up(stack.directory)
    execution = Workflow(stack, outputs).classify("seven.png", digit("7"))
    assert (execution.output["label"], execution.output["endpoint"]["name"]) == ("7", deployment.STACK_NAME)
    target = Target(deployment.STACK_NAME, outputs, stack.client, stack)
    ended = {"DataCaptureUrl": "", "KmsKeyArn": "", "NetworkIsolation": "false", "ShadowModelDataUrl": ""}
    assert {name: target.parameter(name) for name in ended} == ended
    said, name = " ".join(capsys.readouterr().out.split()), challenger.split("/")[-2]
    assert f"The shadow trial of {name} has ended; its captured data stays in s3://models/captured." in said


def test_a_killed_shadow_does_not_affect_the_workflow(stack, shadowing):
    os.kill(server_of(1), signal.SIGKILL)
    execution = shadowing.classify("after.png", digit("2"))
    assert (execution.status, execution.output["label"], execution.task_errors) == ("SUCCEEDED", "2", [])


def test_a_stack_without_a_shadow_model_is_refused_with_what_to_do(stack, workflow, tmp_path):
    command = [sys.executable, "-m", "local.shadow", "--stack=image-classification", f"--output={tmp_path}"]
    environment = clean_environment() | stack.aws_variables
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    printed = " ".join(ended.stdout.split())  # without line breaks
    assert "has no shadow model: deploy it with EndpointType=realtime, DataCaptureUrl and Shadow" in printed
