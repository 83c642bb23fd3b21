"""make models, make promote and make rollback, with real comparisons and CloudFormation's UpdateStack."""

import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

import compare
from endpoint import package
from local import deployment, promote, registry
from local.command import LOCAL, ROOT, StackError
from local.deployment import deploy
from local.target import Target
from tiny_model import write_tiny_model
from workflow import wait_for

RIGHT, WRONG = ["dark", "light"], ["light", "dark"]


class Bucket:
    """A bucket of models, under a prefix, and a stack that serves one of them."""

    def __init__(self, stack, folder):
        self.stack, self.folder, self.s3 = stack, folder, stack.client("s3")
        self.name, self.prefix = f"models-{uuid.uuid4().hex[:12]}", "team/"
        self.s3.create_bucket(Bucket=self.name)
        self.archives = {}
        for brightness in range(30):
            for label, pixel in (("dark", brightness), ("light", 255 - brightness)):
                (folder / "images" / label).mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (6, 4), (pixel, pixel, pixel)).save(folder / "images" / label / f"{brightness}.png")

    def model(self, name, labels, side, uploaded=True):
        """Make a model that is always right, or always wrong; side makes it different from others."""
        model = write_tiny_model(self.folder / name, (4, side))
        metadata = json.loads((model / "metadata.json").read_text()) | {"labels": labels}
        metadata |= {"sha256": hashlib.sha256((model / "model.onnx").read_bytes()).hexdigest()}
        metadata |= {"figures": {"test": {"accuracy": 0.9125}}, "images": {"test": {"dark": 900, "light": 700}}}
        (model / "metadata.json").write_text(json.dumps(metadata))
        if uploaded:
            self.upload(name)

    def upload(self, name, champion=""):
        """Package and upload a model, compared with another if that is given. Returns its URL."""
        comparison = None
        if champion:
            data = ["--data", str(self.folder / "images"), "--output", str(self.folder / "comparison")]
            compare.main([str(self.folder / champion), str(self.folder / name), *data])
            comparison = self.folder / "comparison/comparison.json"
        archive = package.build(self.folder / name, [], self.folder / "package", comparison)
        folder = f"{self.prefix}models/{archive.parent.name}"
        for path in package.files_of(archive):
            self.s3.upload_file(str(path), self.name, f"{folder}/{path.name}")
        self.archives[name] = f"s3://{self.name}/{folder}/{archive.name}"
        return self.archives[name]

    def hash(self, name):
        return self.archives[name].split("/")[-2]

    def objects(self, prefix):
        rows = self.s3.list_objects_v2(Bucket=self.name, Prefix=self.prefix + prefix).get("Contents", [])
        return {
            row["Key"]: json.loads(self.s3.get_object(Bucket=self.name, Key=row["Key"])["Body"].read()) for row in rows
        }

    def results(self):
        """The promotions and how they ended, oldest first."""
        found = self.objects("promotions/")
        return [
            (row["kind"], row["model_url"], found.get(key.replace(".json", ".result.json"), {}).get("result"))
            for key, row in found.items()
            if "result" not in row
        ]


@pytest.fixture(scope="module")
def bucket(stack, tmp_path_factory):
    bucket = Bucket(stack, tmp_path_factory.mktemp("registry"))
    bucket.model("poor", WRONG, 6)
    bucket.model("good", RIGHT, 7)
    bucket.model("other", RIGHT, 8)
    bucket.model("broken", RIGHT, 9, uploaded=False)
    (bucket.folder / "broken/model.onnx").write_bytes(b"no model")
    bucket.upload("broken")
    return bucket


@pytest.fixture(scope="module")
def deployed(stack, bucket):
    outputs = deploy(stack, "registry", EndpointType="serverless", ModelDataUrl=bucket.archives["poor"])
    yield Target("registry", outputs, stack.client, stack)
    stack.client("cloudformation").delete_stack(StackName="registry")


@pytest.fixture
def serving(deployed, bucket):
    """The stack, which serves the poor model, with no promotions and no comparisons."""
    yield deployed
    before = registry.service(deployed)
    if before.model_url != bucket.archives["poor"]:
        promote.update(deployed, before, bucket.archives["poor"], uuid.uuid4().hex)
        promote.wait(deployed)
    for key in bucket.objects("promotions/"):
        bucket.s3.delete_object(Bucket=bucket.name, Key=key)
    for name in ("good", "other"):
        bucket.s3.delete_object(Bucket=bucket.name, Key=f"{bucket.prefix}models/{bucket.hash(name)}/comparison.json")
    shutil.rmtree(bucket.folder / "package", ignore_errors=True)  # with comparisons


def answer(serving, pixel=255):
    """What the endpoint says of a light image."""
    Image.new("RGB", (6, 4), (pixel, pixel, pixel)).save(data := io.BytesIO(), "PNG")
    response = serving.client("sagemaker-runtime").invoke_endpoint(
        EndpointName=serving.outputs["EndpointName"], Body=data.getvalue(), ContentType="image/png"
    )
    return json.loads(response["Body"].read())["predictions"][0]["label"]


def test_a_better_model_is_promoted_recorded_and_rolled_back(serving, bucket):
    assert answer(serving) == "dark"
    functions = serving.client("lambda").get_alias(
        FunctionName=serving.outputs["CheckConfidenceFunctionName"], Name="live"
    )
    bucket.upload("good", champion="poor")
    done = promote.promote(serving, bucket.hash("good")[:6])
    assert registry.in_service(serving) == bucket.archives["good"]
    assert answer(serving) == "light"
    ((key, record), (_, result)) = bucket.objects("promotions/").items()
    assert record == done.document and key.endswith(f"Z-{bucket.hash('good')}.json")
    assert result["result"] == "promoted" and result["reason"] is None
    assert record["previous_url"] == bucket.archives["poor"] and record["by"].startswith("arn:aws:")
    assert (record["verdict"], record["margin"], record["override"]) == ("better", 0.02, None)
    archive = bucket.s3.get_object(Bucket=bucket.name, Key=bucket.archives["good"].split("/", 3)[3])["Body"].read()
    assert record["archive_sha256"] == hashlib.sha256(archive).hexdigest()
    after = serving.client("lambda").get_alias(FunctionName=serving.outputs["CheckConfidenceFunctionName"], Name="live")
    assert after["FunctionVersion"] == functions["FunctionVersion"]

    promote.promote(serving, bucket.archives["other"], "only a test")
    assert promote.rollback(serving).model_url == bucket.archives["good"]
    assert promote.rollback(serving).model_url == bucket.archives["poor"]
    assert answer(serving) == "dark"
    with pytest.raises(StackError, match="there is none to return to"):
        promote.rollback(serving)
    assert [(kind, result) for kind, _, result in bucket.results()] == [("promotion", "promoted")] * 2 + [
        ("rollback", "promoted")
    ] * 2

    table = list_models(serving, "--stack", "registry")
    assert f"{bucket.hash('good')}" in table and "91.2% 1,600" in table
    assert "uploaded (UTC)" in table and "promoted (UTC)" in table
    assert f"{bucket.hash('poor')} better" in table and table.count("in service") == 1
    without_stack = list_models(serving, "--bucket", f"{bucket.name}/team")
    assert f"{bucket.hash('poor')} better" in without_stack and "in service" not in without_stack


def list_models(serving, *options):
    """make models, with variables that point at the local stack."""
    command = [sys.executable, "-m", "local.models", *options]
    environment = os.environ | serving.local.aws_variables
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return " ".join(done.stdout.split())


def test_what_cannot_be_promoted_is_refused_with_what_to_do(serving, bucket):
    good, poor = bucket.hash("good"), bucket.hash("poor")
    bucket.upload("good", champion="other")
    refused = {
        "unknown": f"There is no model unknown in s3://{bucket.name}/team/models/: make models lists all",
        f"s3://elsewhere/models/{good}/model.tar.gz": f"did you mean MODEL={good}? make models lists all",
        "": "There is no model ",
        poor: f"{poor} is in service already",
        bucket.hash("other"): "it has no comparison.json (compare it with the model in service",
        good: f"but that of the model in service, {poor}, is ",
    }
    for name, sentence in refused.items():
        with pytest.raises(StackError, match=re.escape(sentence)):
            promote.promote(serving, name)
    bucket.upload("good", champion="poor")
    path = bucket.archives["good"].split("/", 3)[3].replace("model.tar.gz", "comparison.json")
    comparison = json.loads(bucket.s3.get_object(Bucket=bucket.name, Key=path)["Body"].read())
    comparison["challenger"]["archive_sha256"] = "0" * 64
    bucket.s3.put_object(Bucket=bucket.name, Key=path, Body=json.dumps(comparison))
    with pytest.raises(StackError, match="is not the archive that was compared, 0000000000000000"):
        promote.promote(serving, good, "in spite of it")
    archive = bucket.archives["other"].split("/", 3)[3]
    body = bucket.s3.get_object(Bucket=bucket.name, Key=archive)["Body"].read()
    bucket.s3.put_object(Bucket=bucket.name, Key=archive, Body=b"damaged")
    with pytest.raises(StackError, match="is not what was packaged"):
        promote.promote(serving, bucket.hash("other"), "in spite of it")
    bucket.s3.put_object(Bucket=bucket.name, Key=archive, Body=body)
    with pytest.raises(StackError, match="without a record"):
        promote.rollback(serving)
    assert bucket.results() == []


def test_a_model_is_found_by_the_hash_of_its_archive_or_of_its_model_onnx(bucket):
    def found(name):
        return registry.find(bucket.s3, bucket.name, bucket.prefix, name).url

    good, archive = bucket.archives["good"], bucket.hash("good")
    onnx = hashlib.sha256((bucket.folder / "good/model.onnx").read_bytes()).hexdigest()
    whole = hashlib.sha256(bucket.s3.get_object(**place(good))["Body"].read()).hexdigest()
    names = (good, archive, archive[:8].upper(), whole, whole.upper(), onnx, onnx[:12], onnx[:8].upper())
    assert {found(name) for name in names} == {good}
    with pytest.raises(StackError, match=f"MODEL={archive[:3]} is too short: give at least 4 digits"):
        found(archive[:3])
    with pytest.raises(StackError, match=f"did you mean MODEL={archive}"):
        found(f"s3://another/models/{archive}/model.tar.gz")


def test_a_hash_of_several_models_is_refused_with_their_names(bucket):
    def refused(name):
        with pytest.raises(StackError) as raised:
            registry.find(bucket.s3, bucket.name, "several/", name)
        return str(raised.value)

    one, two, three, four = ("a1b2c3d4" + 8 * "0", 16 * "1", 16 * "2", "a1b2eeee" + 8 * "3")
    for archive, onnx in ((one, 64 * "c"), (two, 64 * "c"), (three, "a1b2" + 60 * "f"), (four, "a1b2eeee" + 56 * "d")):
        folder = f"several/models/{archive}"
        bucket.s3.put_object(Bucket=bucket.name, Key=f"{folder}/metadata.json", Body=json.dumps({"sha256": onnx}))
        bucket.s3.put_object(Bucket=bucket.name, Key=f"{folder}/model.tar.gz", Body=b"")
    again = f"model.onnx cccccccccccc is in 2 archives (packaged again?): give the start of one of {two}, {one}"
    for name in ("cccc", 64 * "c"):
        assert refused(name) in (again, again.replace(f"{two}, {one}", f"{one}, {two}"))
    assert refused("a1b2") == f"MODEL=a1b2 is the start of 3 models: give one of {one}, {four}, {three}"
    for name, archive in (("a1b2c", one), ("a1b2eeee", four), ("a1b2f", three), ("1111", two)):
        assert registry.find(bucket.s3, bucket.name, "several/", name).hash == archive


def place(url):
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return {"Bucket": bucket, "Key": key}


def test_an_override_is_recorded_with_what_it_set_aside(serving, bucket):
    promote.promote(serving, bucket.hash("other"), " the old one is unusable ")
    (record,) = [row for row in bucket.objects("promotions/").values() if "kind" in row]
    assert record["override"] == "the old one is unusable"
    assert record["objections"][0].startswith("it has no comparison.json")
    assert record["verdict"] is None and registry.in_service(serving) == bucket.archives["other"]
    bucket.s3.delete_object(Bucket=bucket.name, Key=bucket.archives["poor"].split("/", 3)[3])
    with pytest.raises(StackError, match=re.escape(f"{bucket.archives['poor']} is gone")):
        promote.rollback(serving)
    bucket.upload("poor")
    assert promote.rollback(serving).previous_url == bucket.archives["other"]


def test_an_update_that_cloudformation_rolls_back_is_recorded_as_failed(serving, bucket):
    with pytest.raises(
        StackError, match=r"(?s)rolled it back \(UPDATE_ROLLBACK_COMPLETE\). Endpoint: .*ping health check"
    ):
        promote.promote(serving, bucket.hash("broken"), "only a test")
    assert bucket.results() == [("promotion", bucket.archives["broken"], "failed")]
    assert (registry.in_service(serving), answer(serving)) == (bucket.archives["poor"], "dark")
    with pytest.raises(StackError, match="without a record"):
        promote.rollback(serving)


def test_of_two_promotions_at_once_one_succeeds(serving, bucket):
    def promoted(name):
        try:
            return promote.promote(serving, bucket.hash(name), "a race").model_url
        except StackError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(promoted, ["good", "other"]))
    (winner,) = [url for url in ended if url.startswith("s3://")]
    (loser,) = [error for error in ended if error != winner]
    assert re.search("in the meantime|is being updated|CloudFormation refused the update", loser)
    assert registry.in_service(serving) == winner
    assert [url for _, url, result in bucket.results() if result == "promoted"] == [winner]
    assert [result for _, url, result in bucket.results() if url != winner] in ([], ["failed"])


def test_a_promotion_that_is_interrupted_leaves_a_true_record(serving, bucket):
    """As a named stack, with variables that point at the local one."""
    command = [sys.executable, "-m", "local.promote", "--stack", "registry", "--model", bucket.hash("good")]
    variables = os.environ | serving.local.aws_variables | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*command, "--override", "a test"], cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True
    )

    def status():
        (stack,) = serving.client("cloudformation").describe_stacks(StackName="registry")["Stacks"]
        return stack["StackStatus"]

    printed = ""
    while "UPDATE_IN_PROGRESS" not in printed and (line := process.stdout.readline()):
        printed += line
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    *_, last = output.splitlines()
    assert (
        last.startswith("Interrupted. An update that has begun goes on in CloudFormation") and process.returncode == 130
    )
    assert bucket.results() == [("promotion", bucket.archives["good"], None)]
    wait_for(lambda: not status().endswith("_IN_PROGRESS"))
    assert registry.in_service(serving) == bucket.archives["good"]
    assert promote.rollback(serving).model_url == bucket.archives["poor"]
    assert [result for _, _, result in bucket.results()] == ["promoted", "promoted"]


def test_make_up_keeps_a_promoted_model(workflow, bucket, monkeypatch, tmp_path, capsys):
    """With .local elsewhere, as make up writes .local/env."""
    stack = workflow.stack
    for name in ("venvs", "package"):
        (tmp_path / name).symlink_to(LOCAL / name)
    monkeypatch.setattr(deployment, "LOCAL", tmp_path)
    monkeypatch.setattr(deployment, "OUTPUTS", tmp_path / "outputs.json")
    target = Target(deployment.STACK_NAME, workflow.outputs, stack.client, stack)
    packaged = registry.in_service(target)
    archive = package.build(bucket.folder / "good", [], bucket.folder / "package")
    promoted = deployment.upload_model(stack, archive)
    assert deployment.promoted_model(stack) == ""
    promote.promote(target, archive.parent.name, "a test")
    try:
        deployment.up(stack.directory)
        assert registry.in_service(target) == promoted
        name = packaged.split("/")[-2]
        said = " ".join(capsys.readouterr().out.split())
        assert (
            f"The promoted model {archive.parent.name} stays in service. The packaged model is {name}: make pro" in said
        )
    finally:
        assert promote.rollback(target).model_url == packaged
    for row in workflow.s3.list_objects_v2(Bucket=deployment.MODEL_BUCKET, Prefix="promotions/")["Contents"]:
        workflow.s3.delete_object(Bucket=deployment.MODEL_BUCKET, Key=row["Key"])
