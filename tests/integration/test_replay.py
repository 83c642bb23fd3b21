"""make replay against what a real execution with that threshold, and a real stack with that model, decide."""

import io
import json
from datetime import UTC, datetime

import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from endpoint import package
from local.command import ROOT
from local.deployment import MODEL_BUCKET, deploy
from local.target import Target
from monitoring import prediction_log
from review.table import ReviewTable
from test_evaluate_and_trace import run
from workflow import DIGITS, Workflow, wait_for

LABELS = [str(digit) for digit in range(10)]
THRESHOLDS = (0.5, 0.9, 0.99)


@pytest.fixture(scope="module")
def stack_name():
    return "image-classification"


def blended(first, second):
    """An image between two digits, as PNG."""
    images = [Image.open(sorted((DIGITS / "test" / label).iterdir())[0]).convert("L") for label in (first, second)]
    buffer = io.BytesIO()
    Image.blend(images[0], images[1].resize(images[0].size), 0.45).save(buffer, "PNG")
    return buffer.getvalue()


def replayed(workflow, stack_name, folder, *options):
    """The output of make replay with STACK=name, and replay.json; None if it failed."""
    done = run(workflow, stack_name, "replay", "--output", str(folder), *map(str, options))
    text = " ".join(done.stdout.split())
    assert done.returncode == 0 or "Error" in text, done.stdout + done.stderr
    return text, json.loads((folder / "replay.json").read_text()) if done.returncode == 0 else None


@pytest.fixture(scope="module")
def classified(workflow):
    """The time before, and executions: by key the version that was classified, and the digit that it is."""
    since = datetime.now(UTC).isoformat()
    files = {f"{label}.png": sorted((DIGITS / "test" / label).iterdir())[0].read_bytes() for label in LABELS}
    pairs = [("1", "7"), ("3", "8"), ("5", "6"), ("4", "9"), ("0", "6"), ("2", "3"), ("8", "9"), ("1", "4")]
    files |= {f"{first}-{second}.png": blended(first, second) for first, second in pairs}
    executions = {name: workflow.classify(f"replay/{name}", data) for name, data in files.items()}
    workflow.classify("replay/broken.png", b"no image")
    wait_for(lambda: len(lines_since(workflow, since)) == len(files) + 1)
    results = {
        name: each.output or json.loads(each.cause) for name, each in executions.items()
    }  # CheckConfidence's, accepted or not
    assert 0 < sum(result["accepted"] for result in results.values()) < len(files)
    yield since, results
    for result in results.values():
        key = {"image": {"S": f"s3://{workflow.bucket}/{result['s3_key']}"}, "version": {"S": result["s3_version_id"]}}
        workflow.reviews.client.delete_item(TableName=workflow.reviews.name, Key=key)


def lines_since(workflow, since):
    logs, group = workflow.stack.client("logs"), workflow.outputs["PredictionLogGroupName"]
    return prediction_log.from_log_group(logs, group, datetime.fromisoformat(since))


def decided(workflow, results, **more):
    """What the workflow decides about the same versions: {name: CheckConfidence's output}."""
    found = {}
    for name, result in results.items():
        request = {field: result[field] for field in ("s3_bucket", "s3_key", "s3_version_id")}
        execution = workflow.execute(request | more)
        found[name] = execution.output or json.loads(execution.cause)
    return found


def counts_of(made):
    return {name: made["after"][name]["count"] for name in ("accepted", "review")} | {
        move: each["count"] for move, each in made["moves"].items()
    }


def counted(before, after):
    """The counts that replay.json must have, from the workflow's decisions."""
    pairs = [(before[name], after[name]) for name in before]
    moves = [(old["accepted"], new["accepted"], old["label"] != new["label"]) for old, new in pairs]
    return {
        "accepted": sum(new["accepted"] for _, new in pairs),
        "review": sum(not new["accepted"] for _, new in pairs),
        "accepted_to_review": sum(old and not new for old, new, _ in moves),
        "review_to_accepted": sum(new and not old for old, new, _ in moves),
        "other_label": sum(old and new and other for old, new, other in moves),
    }


@pytest.fixture(scope="module")
def challenger(workflow, tmp_path_factory):
    """The deployed model with softer probabilities and 1 and 7 exchanged, in the model bucket; its hash."""
    folder = tmp_path_factory.mktemp("challenger")
    model = onnx.load(ROOT / ".local/model/model.onnx")
    (output,) = model.graph.output
    for node in model.graph.node:
        node.output[:] = ["original" if name == output.name else name for name in node.output]
    half = helper.make_tensor("half", TensorProto.FLOAT, [], [0.5])
    model.graph.initializer.extend([half, helper.make_tensor("axis", TensorProto.INT64, [1], [1])])
    model.graph.node.extend([
        helper.make_node("Pow", ["original", "half"], ["softer"]),
        helper.make_node("ReduceSum", ["softer", "axis"], ["sum"], keepdims=1),
        helper.make_node("Div", ["softer", "sum"], [output.name]),
    ])  # fmt: skip
    onnx.save_model(model, folder / "model.onnx")
    metadata = json.loads((ROOT / ".local/model/metadata.json").read_text())
    metadata["labels"] = ["7" if label == "1" else "1" if label == "7" else label for label in metadata["labels"]]
    (folder / "metadata.json").write_text(json.dumps(metadata))
    archive = package.build(folder, [], folder / "packaged")
    s3 = workflow.stack.client("s3")
    key = f"models/{archive.parent.name}/model.tar.gz"
    s3.upload_file(str(archive), MODEL_BUCKET, key)
    yield archive.parent.name
    s3.delete_object(Bucket=MODEL_BUCKET, Key=key)


def test_the_deployed_model_changes_nothing(workflow, stack_name, classified, tmp_path):
    since, results = classified
    url = Target(stack_name, workflow.outputs, workflow.stack.client).parameter("ModelDataUrl")
    text, made = replayed(workflow, stack_name, tmp_path, "--since", since, "--model", url)
    assert counts_of(made) == counted(results, results)
    assert made["after"]["confidences_error"] == pytest.approx(made["before"]["confidences_error"])
    assert made["errors"] == {"UnsupportedImageError": 1}
    assert "Set aside: 1 image that ended with an error, UnsupportedImageError (1)." in text


def test_a_model_decides_as_a_stack_with_it(workflow, stack, stack_name, classified, challenger, tmp_path):
    since, results = classified
    text, made = replayed(workflow, stack_name, tmp_path, "--since", since, "--model", challenger[:8])
    assert f"models/{challenger}/model.tar.gz (model.onnx {made['model']['model_sha256'][:12]})" in text
    _, both = replayed(workflow, stack_name, tmp_path, "--since", since, "--model", challenger, "--threshold", 0.4)
    url = f"s3://{MODEL_BUCKET}/models/{challenger}/model.tar.gz"
    buckets = f"arn:aws:s3:::{workflow.bucket}"
    other = deploy(stack, "replayed", EndpointType="serverless", ModelDataUrl=url, FurtherImageBuckets=buckets)
    redeployed = Workflow(stack, other)
    assert counts_of(made) == counted(results, decided(redeployed, results))
    lower = decided(redeployed, results, threshold=0.4)
    assert counts_of(both) == counted(results, lower)
    assert both["moves"]["other_label"]["count"] > 0 and made["moves"]["accepted_to_review"]["count"] > 0
    stack.client("cloudformation").delete_stack(StackName="replayed")
    expected = [1 - each["confidence"] for each in lower.values() if each["accepted"]]
    assert both["after"]["confidences_error"] == pytest.approx(sum(expected) / len(expected))


def test_a_threshold_decides_as_executions_with_it(workflow, stack_name, classified, tmp_path):
    """Reviewers have decided by the truth, so the error is known. The executions replace what was classified before."""
    since, results = classified
    table = ReviewTable(workflow.stack.client("dynamodb"), workflow.outputs["ReviewTableName"])
    for name, result in results.items():
        if not result["accepted"]:
            review = table.get(f"s3://{workflow.bucket}/{result['s3_key']}", result["s3_version_id"])
            table.decide(review, "maria", "label", name[0])
    made = {each: replayed(workflow, stack_name, tmp_path / str(each), "--since", since, "--threshold", each)
            for each in THRESHOLDS}  # fmt: skip
    page = (tmp_path / "0.5/report.html").read_text()
    for threshold, (_, found) in made.items():
        known = decided(workflow, results, threshold=threshold)
        assert counts_of(found) == counted(results, known)
        now = [name for name, each in known.items() if each["accepted"] and not results[name]["accepted"]]
        stratum = found["after"]["error"]["strata"]["low_confidence"]
        assert (stratum["images"], stratum["reviewed"]) == (len(now), len(now))
        assert stratum["wrong"] == sum(known[name]["label"] != name[0] for name in now)
    text, found = made[0.5]
    assert found["moves"]["review_to_accepted"]["count"] > 0 and "error of accepted images, by decisions" in text
    assert page.count('src="data:image/png;base64,') == found["moves"]["review_to_accepted"]["count"]
    assert "reviewed: " in page


def test_a_sample_is_drawn_and_deleted_images_are_named(workflow, stack_name, classified, challenger, seven, tmp_path):
    model = ("--model", f"s3://{MODEL_BUCKET}/models/{challenger}/model.tar.gz")
    _, made = replayed(workflow, stack_name, tmp_path, *model, "--since", classified[0], "--images", 5)
    assert (made["sampled"], made["images"], made["after"]["accepted"]["high"] > 0) == (5, len(classified[1]), True)
    since = datetime.now(UTC).isoformat()
    gone, kept = (workflow.classify(f"replay/{name}.png", seven) for name in ("gone", "kept"))
    wait_for(lambda: {gone.arn, kept.arn} <= {line["execution_arn"] for line in lines_since(workflow, since)})
    version = gone.output["s3_version_id"]
    workflow.s3.delete_object(Bucket=workflow.bucket, Key="replay/gone.png", VersionId=version)
    text, made = replayed(workflow, stack_name, tmp_path, *model, "--since", since)
    assert made["model"]["missing"] == {"deleted": [f"s3://{workflow.bucket}/replay/gone.png"]}
    assert f"Left out, deleted: 1 image, s3://{workflow.bucket}/replay/gone.png." in text


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--model", "abcdef12"], "There is no model abcdef12 in s3://models/models/"),
        (["--model", "no/such"], "MODEL=no/such is no folder or file, no s3:// URL and no start of a hash"),
        (["--model", "s3://models/none"], "s3://models/none cannot be downloaded: "),
        (["--model", "docs"], "docs is no model: "),
        (["--threshold", "0.9", "--since", "2099-01-01"], "No image was classified in the stack image-classification"),
    ],
)
def test_what_cannot_be_replayed_is_said(workflow, stack_name, classified, options, sentence, tmp_path):
    text, made = replayed(workflow, stack_name, tmp_path, *options)
    assert made is None and sentence in text
