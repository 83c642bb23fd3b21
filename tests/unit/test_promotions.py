"""The registry of models, before it asks AWS, and what it asks CloudFormation."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime

import boto3
import pytest
from botocore.stub import Stubber

import compare
import lineage
from class_folders import write_classes
from documents import ROOT
from local import command, deployment, models, promote, registry
from local.command import StackError
from local.registry import Model, Promotion, Service
from local.target import Target, target

CHAMPION = {"sha256": "c" * 64, "labels": ["cat", "dog"]}
COMPARISON = {
    "champion": {"model_sha256": "c" * 64},
    "challenger": {"model_sha256": "d" * 64},
    "verdict": "better",
    "holds": True,
}


def model(comparison=COMPARISON, name="1", **metadata):
    metadata = {"sha256": "d" * 64, "labels": ["cat", "dog"]} | metadata
    return Model(
        f"s3://b/p/models/{name * 16}/model.tar.gz", datetime(2026, 1, 1, tzinfo=UTC), metadata, comparison, None
    )


@pytest.mark.parametrize(
    ("challenger", "sentence"),
    [
        (model(), None),
        (model(labels=["dog", "cat", "eel"]), None),
        (model(None), "it has no comparison.json"),
        (model(COMPARISON | {"holds": False, "verdict": "undecided"}), "do not hold, which says: undecided"),
        (
            model(COMPARISON | {"champion": {"model_sha256": "e" * 64}}),
            f"a champion whose model.onnx is {'e' * 12}, but that of the model in service, {'0' * 16}, is {'c' * 12}",
        ),
        (model(sha256="e" * 64), "is about another challenger, model.onnx dddddddddddd"),
        (model(labels=["cat"]), "it does not know labels of the model in service: dog"),
    ],
)
def test_a_model_is_promoted_only_if_it_was_compared_with_the_champion_and_allowed(challenger, sentence):
    found = promote.objections(challenger, model(None, "0", **CHAMPION))
    assert len(found) == (sentence is not None)
    assert sentence is None or sentence in found[0]


def record(kind, url, previous, result="promoted"):
    return Promotion("2026-01-01T00:00:00+00:00", kind, "s", "arn", url, "", "", previous, "me", result=result)


@pytest.mark.parametrize(
    ("promotions", "history"),
    [
        ([], []),
        ([("promotion", "b", "a")], ["a", "b"]),
        ([("promotion", "b", "a"), ("promotion", "c", "b")], ["a", "b", "c"]),
        ([("promotion", "b", "a"), ("promotion", "c", "b"), ("rollback", "b", "c")], ["a", "b"]),
        ([("promotion", "b", "a"), ("promotion", "c", "b"), ("rollback", "b", "c"), ("rollback", "a", "b")], ["a"]),
        ([("promotion", "b", "a"), ("promotion", "c", "b", "failed")], ["a", "b"]),
        ([("promotion", "b", "a"), ("promotion", "d", "x")], ["a", "b", "x", "d"]),  # x by make deploy
        ([("promotion", "b", "a"), ("promotion", "a", "b"), ("rollback", "b", "a")], ["a", "b"]),
        ([("promotion", "b", "a", None)], []),
        ([("promotion", "b", "a", None), ("promotion", "b", "a")], ["a", "b"]),
        ([("promotion", "b", "a"), ("promotion", "now", "b", None)], ["a", "b", "now"]),
    ],
)
def test_the_history_is_a_stack(promotions, history):
    assert registry.served([record(*each) for each in promotions], "now") == history


@pytest.mark.parametrize("url", ["", "s3://b/model.tar.gz", "s3://b/models/1234/model.tar.gz", "https://b/models/x"])
def test_a_url_that_is_in_no_registry_is_refused_with_the_form(url):
    with pytest.raises(StackError, match=r"s3://BUCKET/PREFIX/models/HASH/model\.tar\.gz: upload one with"):
        registry.split(url)


def test_the_prefix_is_what_comes_before_the_models():
    assert registry.split(f"s3://b/a/models/c/models/{'0' * 16}/model.tar.gz") == ("b", "a/models/c/", "0" * 16)
    assert registry.split(f"s3://b/models/{'0' * 16}/model.tar.gz") == ("b", "", "0" * 16)


@pytest.fixture
def cloudformation():
    keys = {"aws_access_key_id": "none", "aws_secret_access_key": "none"}
    client = boto3.client("cloudformation", region_name="us-east-1", **keys)
    with Stubber(client) as stubber:
        yield client, stubber
        stubber.assert_no_pending_responses()


BEFORE = Service(
    "arn:stack", "UPDATE_COMPLETE", model().url, "serverless", ("Threshold", "ModelDataUrl"), datetime.now(UTC)
)


def test_the_update_keeps_the_template_and_every_other_parameter(cloudformation):
    client, stubber = cloudformation
    url = {"ParameterKey": "ModelDataUrl", "ParameterValue": "s3://b/new.tar.gz"}
    request = {
        "StackName": "arn:stack",
        "UsePreviousTemplate": True,
        "Parameters": [{"ParameterKey": "Threshold", "UsePreviousValue": True}, url],
        "Capabilities": ["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
        "ClientRequestToken": "token",
    }
    stubber.add_response("update_stack", {"StackId": "arn:stack"}, request)
    promote.update(Target("s", {}, lambda _: client), BEFORE, "s3://b/new.tar.gz", "token")


def test_an_update_that_changes_nothing_is_refused_in_one_sentence(cloudformation):
    client, stubber = cloudformation
    stubber.add_client_error("update_stack", "ValidationError", "No updates are to be performed.")
    with pytest.raises(StackError, match=r"CloudFormation refused the update: No updates are to be performed\."):
        promote.update(Target("s", {}, lambda _: client), BEFORE, "s3://b/new.tar.gz", "token")


@pytest.mark.parametrize("kind", ["none", "existing"])
def test_a_stack_that_creates_no_endpoint_serves_no_model(cloudformation, kind):
    client, stubber = cloudformation
    parameters = [{"ParameterKey": "EndpointType", "ParameterValue": kind}]
    stack = {"StackName": "s", "CreationTime": datetime.now(UTC), "StackStatus": "UPDATE_COMPLETE"}
    stubber.add_response("describe_stacks", {"Stacks": [stack | {"Parameters": parameters}]})
    with pytest.raises(
        StackError, match=f"the stack s on AWS has EndpointType {kind}, so it serves no model of its own"
    ):
        registry.in_service(Target("s", {}, lambda _: client))


def test_an_update_in_progress_is_refused(cloudformation):
    client, stubber = cloudformation
    values = {"EndpointType": "serverless", "ModelDataUrl": model().url}
    parameters = [{"ParameterKey": name, "ParameterValue": value} for name, value in values.items()]
    stack = {"StackName": "s", "StackId": "arn:stack", "CreationTime": datetime.now(UTC), "Parameters": parameters}
    stubber.add_response("describe_stacks", {"Stacks": [stack | {"StackStatus": "UPDATE_IN_PROGRESS"}]})
    stubber.add_response("describe_stacks", {"Stacks": [stack | {"StackStatus": "UPDATE_COMPLETE"}]})
    found = Target("s", {}, lambda _: client)
    with pytest.raises(StackError, match=r"is being updated \(UPDATE_IN_PROGRESS\)"):
        promote.idle(found)
    assert promote.idle(found).parameters == ("EndpointType", "ModelDataUrl")


def test_a_package_for_sagemakers_registry_has_metadata_within_its_limits():
    """botocore checks the request, but no patterns: letters, digits, spaces and _.:/=+-@ in keys and values."""
    client = boto3.client("sagemaker", "us-east-1", aws_access_key_id="none", aws_secret_access_key="none")
    container = {"Image": "image", "ModelDataUrl": model().url, "Environment": {"A": "b"}, "Mode": "SingleModel"}
    data = {"train": "a" * 64, "validation": None, "test": "b" * 64}
    made_from = {
        "data": data,
        "manifest_sha256": None,
        "code": {"commit": "c" * 40, "modified": False},
        "parent": "d" * 64,
    }
    override = 'it\'s needed (all of it), "now"!\n' + "é" * 300
    promoted = dataclasses.replace(record("promotion", model().url, "before"), override=override, margin=0.02)
    request = promote.package_request("group", container, model(lineage=made_from), promoted)
    with Stubber(client) as stubber:
        stubber.add_response("create_model_package", {"ModelPackageArn": "arn"}, request)
        client.create_model_package(**request)
    metadata = request["CustomerMetadataProperties"]
    assert metadata["train_data_sha256"] == "a" * 64 and metadata["commit"] == "c" * 40 and metadata["margin"] == "0.02"
    assert metadata["override"].startswith("it s needed  all of it")
    assert "validation_data_sha256" not in metadata and len(metadata) <= 50
    assert all(0 < len(text) <= 256 for pair in metadata.items() for text in pair)
    assert all(letter.isalnum() or letter in " _.:/=+-@" for pair in metadata.items() for letter in "".join(pair))
    assert request["ModelApprovalStatus"] == "Approved"
    assert request["InferenceSpecification"]["Containers"][0].keys() == {"Image", "ModelDataUrl", "Environment"}


def test_a_row_shows_accuracy_images_champion_and_the_last_promotion():
    metadata = {"figures": {"test": {"accuracy": 0.9123}}, "images": {"test": {"cat": 900, "dog": 300}}}
    url = model().url
    promotions = [record("promotion", url, "x"), record("promotion", url, "x", "failed")]
    row = models.row(model(**metadata), {"c" * 64: "champion's hash"}, promotions)
    assert row[0] == "1" * 16 and row[2:6] == ["91.2%", "1,200", "champion's hash", "better"]
    assert row[6] == "2026-01-01 00:00"  # UTC
    assert models.row(model(), {}, [])[4] == "model.onnx cccccccccccc"
    bare = models.row(model(None, sha256=""), {}, [])
    assert bare[2:] == ["", "", "", "", ""]


def test_make_promote_without_a_model_says_what_to_give(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["promote"])
    with pytest.raises(SystemExit):
        promote.main()
    assert capsys.readouterr().out == "UsageError: MODEL is missing: give MODEL=hash; make models lists them\n"


def test_a_bucket_without_a_stack_is_on_aws_and_the_local_one_needs_its_environment():
    variables = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    variables |= dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull)
    variables |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_DEFAULT_REGION": "us-east-1"}
    command = [sys.executable, "-m", "local.models", "--bucket", "models/team"]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    said = " ".join(done.stdout.split())
    assert said.startswith(
        "StackError: BUCKET=models/team: Unable to locate credentials. Without STACK, it is a bucket on"
    )
    assert said.endswith("For the local stack: make up, then source .local/env") and done.returncode == 1


def test_without_a_running_stack_there_is_nothing_to_promote(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "LOCAL", tmp_path)
    monkeypatch.setattr(deployment, "LOCAL", tmp_path)
    with pytest.raises(StackError, match="The local stack is not running: make up starts it"), target(start=False):
        pass


def test_the_lineage_names_data_code_and_the_model_before(tmp_path):
    train = write_classes(tmp_path / "train", {"cat": 3, "dog": 2})
    (train / "dog/copy.png").write_bytes((train / "cat/0.png").read_bytes())  # counts once, as a cat
    (tmp_path / "model").mkdir()
    first = lineage.lineage(train, None, None, tmp_path / "model")
    assert first["data"] == {"train": compare.find_images(train, []).sha256, "validation": None, "test": None}
    assert (first["manifest_sha256"], first["parent"]) == (None, None)
    assert len(first["code"]["commit"]) == 40 and first["code"]["modified"] in (True, False)
    (tmp_path / "manifest.jsonl").write_bytes(b"{}\n")
    (tmp_path / "model/model.onnx").write_bytes(b"model")
    (train / "cat/0.png").rename(train / "cat/renamed.png")
    again = lineage.lineage(train, train, None, tmp_path / "model")
    assert again["data"]["train"] == again["data"]["validation"] == first["data"]["train"]
    assert again["manifest_sha256"] == hashlib.sha256(b"{}\n").hexdigest()
    assert again["parent"] == hashlib.sha256(b"model").hexdigest()
    (train / "dog/0.png").rename(train / "cat/0.png")
    assert lineage.data_sha256(train) != first["data"]["train"]


def test_without_a_checkout_the_code_is_unknown(tmp_path, monkeypatch):
    """As in a SageMaker job."""
    monkeypatch.setattr(lineage, "__file__", str(tmp_path / "lineage.py"))
    assert lineage.code() == {"commit": None, "modified": None}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert json.dumps(lineage.code()) == '{"commit": null, "modified": null}'
