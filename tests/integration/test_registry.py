"""make models, make promote and make rollback, with real comparisons and CloudFormation's UpdateStack."""

import hashlib
import json
import threading
import uuid

import pytest
from PIL import Image

import compare
from endpoint import package
from local import models, registry
from local.command import StackError
from local.deployment import deploy
from local.target import Target
from tiny_model import write_tiny_model

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
        """Train a model that is always right, or always wrong; side makes it different from others."""
        model = write_tiny_model(self.folder / name, (4, side))
        metadata = json.loads((model / "metadata.json").read_text()) | {"labels": labels}
        metadata |= {"sha256": hashlib.sha256((model / "model.onnx").read_bytes()).hexdigest()}
        metadata |= {"figures": {"test": {"accuracy": 0.9125}}, "images": {"test": {"dark": 900, "light": 700}}}
        (model / "metadata.json").write_text(json.dumps(metadata))
        return self.upload(name) if uploaded else ""

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
    return bucket


@pytest.fixture
def serving(stack, bucket):
    """The stack, which serves the poor model, with no promotions."""
    outputs = deploy(stack, "registry", EndpointType="serverless", ModelDataUrl=bucket.archives["poor"])
    yield Target("registry", outputs, stack.client, stack)
    stack.client("cloudformation").delete_stack(StackName="registry")
    for key in bucket.objects("promotions/"):
        bucket.s3.delete_object(Bucket=bucket.name, Key=key)
    for name in ("good", "other"):
        bucket.s3.delete_object(Bucket=bucket.name, Key=f"{bucket.prefix}models/{bucket.hash(name)}/comparison.json")


def answer(serving, pixel=255):
    """What the endpoint says of a light image."""
    image = Image.new("RGB", (6, 4), (pixel, pixel, pixel))
    from io import BytesIO

    image.save(data := BytesIO(), "PNG")
    response = serving.client("sagemaker-runtime").invoke_endpoint(
        EndpointName=serving.outputs["EndpointName"], Body=data.getvalue(), ContentType="image/png"
    )
    return json.loads(response["Body"].read())["predictions"][0]["label"]


def test_a_better_model_is_promoted_recorded_and_rolled_back(serving, bucket, capsys):
    assert answer(serving) == "dark"
    functions = serving.client("lambda").get_alias(
        FunctionName=serving.outputs["CheckConfidenceFunctionName"], Name="live"
    )
    bucket.upload("good", champion="poor")
    done = registry.promote(serving, bucket.hash("good")[:6])
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

    registry.promote(serving, bucket.archives["other"], "only a test")
    assert registry.rollback(serving).model_url == bucket.archives["good"]
    assert registry.rollback(serving).model_url == bucket.archives["poor"]
    assert answer(serving) == "dark"
    with pytest.raises(StackError, match="there is none to return to"):
        registry.rollback(serving)
    assert [(kind, result) for kind, _, result in bucket.results()] == [("promotion", "promoted")] * 2 + [
        ("rollback", "promoted")
    ] * 2

    capsys.readouterr()
    models.show(bucket.s3, bucket.name, bucket.prefix, serving)
    table = " ".join(capsys.readouterr().out.split())
    assert f"{bucket.hash('poor')}" in table and "91.2% 1,600" in table
    assert f"{bucket.hash('poor')} better" in table and "in service" in table
