"""make retrain REMOTE=1: a SageMaker job on the prepared data, and its model in the folder."""

import json
from types import SimpleNamespace

import pytest
from moto.sagemaker.responses import SageMakerResponse
from moto.server import ThreadedMotoServer
from test_launch import ROLE, archive_of, objects

from local import retrain
from local.command import StackError
from local.target import Target

MODEL = {"model.onnx": b"a model", "metadata.json": b'{"labels": ["bright cat", "dark dog"]}'}
ARGUMENTS = ["--role", ROLE, "--bucket", "models", "--lib", "none"]


@pytest.fixture
def found(aws, monkeypatch):
    """A stack whose AWS is this process, for other processes too: every job completes at once and leaves MODEL."""
    create = SageMakerResponse.create_training_job

    def complete(response):
        created = create(response)
        request = json.loads(response.body)
        key = f"{request['OutputDataConfig']['S3OutputPath']}/{request['TrainingJobName']}/output/model.tar.gz"
        bucket, _, key = key.removeprefix("s3://").partition("/")
        aws.client("s3").put_object(Bucket=bucket, Key=key, Body=archive_of(MODEL))
        return created

    monkeypatch.setattr(SageMakerResponse, "create_training_job", complete)
    server = ThreadedMotoServer(port=0)
    server.start()
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.get_host_and_port()[1]}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    yield Target("stack", {}, aws.client, SimpleNamespace(aws_variables=variables))
    server.stop()


def prepared(folder, images):
    (folder / "data").mkdir()
    for part in retrain.PARTS:
        (folder / "data" / part).symlink_to(images)


def test_a_job_trains_on_the_prepared_data_and_its_model_is_downloaded(found, aws, images, tmp_path, capfd):
    prepared(tmp_path, images)
    retrain.train_remotely(found, tmp_path, [*ARGUMENTS, "--hyperparameters", "epochs=3"])
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == MODEL
    (job,) = aws.client("sagemaker").list_training_jobs()["TrainingJobSummaries"]
    described = aws.client("sagemaker").describe_training_job(TrainingJobName=job["TrainingJobName"])
    assert described["HyperParameters"] == {"epochs": "3"}
    channels = {channel["ChannelName"] for channel in described["InputDataConfig"]}
    assert channels >= {"train", "validation", "test"}
    assert len(objects(aws, "image-classification/data/")) == 24
    printed = capfd.readouterr()
    assert "costs money" in printed.out and "Completed" in printed.err


@pytest.mark.parametrize("more", [["--dry-run", "true"], ["--instance-type", "ml.c7g.large"]])
def test_without_a_job_the_model_folder_stays(found, images, tmp_path, more):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.onnx").write_bytes(b"the one before")
    prepared(tmp_path, images)
    with pytest.raises(StackError, match=r"No job was started|failed with status 1"):
        retrain.train_remotely(found, tmp_path, [*ARGUMENTS, *more])
    assert (tmp_path / "model/model.onnx").read_bytes() == b"the one before"
