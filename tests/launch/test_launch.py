"""training/launch/ with SageMaker's SDK, against an emulated AWS and through the SDK's own start scripts."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import boto3
import pytest
from botocore.stub import Stubber
from moto.core.exceptions import JsonRESTError
from moto.core.responses import ActionResult
from moto.iam.responses import IamResponse
from moto.sagemaker.models import sagemaker_backends
from moto.sagemaker.responses import SageMakerResponse

from endpoint import package
from training.launch import bucket, errors, job

ROOT = Path(__file__).parents[2]
ACCOUNT = "123456789012"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/training"
NEEDED = ["--bucket", "models", "--role", ROLE]


def request(name, data, **changes):
    """The CreateTrainingJob request for the options `NEEDED` and one channel; `changes` override its fields."""

    def channel(channel_name, uri):
        source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
        return {"ChannelName": channel_name, "DataSource": {"S3DataSource": source}, "InputMode": "File"}

    start = "/opt/ml/input/data/sm_drivers/sm_train.sh"
    return {
        "TrainingJobName": name,
        "HyperParameters": {},
        "AlgorithmSpecification": {
            "TrainingInputMode": "File",
            "TrainingImage": "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch:2.13-cpu-amzn2023-sagemaker",
            "ContainerEntrypoint": ["/bin/bash"],
            "ContainerArguments": ["-c", f"chmod +x {start} && {start}"],
        },
        "RoleArn": ROLE,
        "InputDataConfig": [
            channel("train", data),
            channel("code", f"s3://models/image-classification/{name}/input/code"),
            channel("sm_drivers", f"s3://models/image-classification/{name}/input/sm_drivers"),
        ],
        "OutputDataConfig": {"S3OutputPath": "s3://models/image-classification", "CompressionType": "GZIP"},
        "ResourceConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30},
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
        "EnableManagedSpotTraining": False,
        **changes,
    }


def start(aws, *options):
    """Start a job and return its name."""
    return job.start(aws, job.parse_options([*NEEDED, *map(str, options)]))


def job_of(name):
    """The emulator's record of a job, to set its status: by default, every job completes at once."""
    return sagemaker_backends[ACCOUNT]["us-east-1"].training_jobs[name]


def objects(aws, prefix=""):
    """The bucket's objects as {key: bytes}."""
    found = aws.resource("s3").Bucket("models").objects.filter(Prefix=prefix)
    return {entry.key: entry.get()["Body"].read() for entry in found}


def run_container(aws, described, opt_ml):
    """Run a job as SageMaker does, but in the folder `opt_ml` and with the project's Python.

    Downloads the channels, writes the configuration, and runs the container's command: the SDK's start script, which
    sets the variables, installs requirements.txt and runs the entry point.
    """
    for channel in described["InputDataConfig"]:
        prefix = channel["DataSource"]["S3DataSource"]["S3Uri"].removeprefix("s3://models/").rstrip("/") + "/"
        for key, content in objects(aws, prefix).items():
            path = opt_ml / "input/data" / channel["ChannelName"] / key.removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            if channel["ChannelName"] == "sm_drivers" or path.name == "train.py":
                content = content.replace(b"/opt/ml", str(opt_ml).encode())
            path.write_bytes(content)
    host = {"current_host": "algo-1", "current_instance_type": "ml.m5.xlarge", "hosts": ["algo-1"]}
    for name, value in {
        "hyperparameters": described["HyperParameters"],
        "inputdataconfig": {channel["ChannelName"]: {} for channel in described["InputDataConfig"]},
        "resourceconfig": host | {"network_interface_name": "eth0"},
    }.items():
        (opt_ml / "input/config").mkdir(exist_ok=True)
        (opt_ml / "input/config" / f"{name}.json").write_text(json.dumps(value))
    for name in ("model", "output/data"):
        (opt_ml / name).mkdir(parents=True)
    algorithm = described["AlgorithmSpecification"]
    return subprocess.run(
        [
            part.replace("/opt/ml", str(opt_ml))
            for part in algorithm["ContainerEntrypoint"] + algorithm["ContainerArguments"]
        ],
        env={
            "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}",
            "TRAINING_JOB_NAME": described["TrainingJobName"],
            "PIP_NO_INDEX": "1",  # the packages of requirements.txt are already installed
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )


def archive_of(files):
    """A tar.gz archive of {name: bytes}."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def put_model(aws, name, archive):
    aws.client("s3").put_object(Bucket="models", Key=f"image-classification/{name}/output/model.tar.gz", Body=archive)


def test_a_dry_run_prints_the_request_without_network_or_credentials(images, monkeypatch, capsys):
    attempts = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: attempts.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: attempts.append(address))
    job.main([*NEEDED, "--train", str(images), "--dry-run", "true"])
    assert attempts == []
    printed = json.loads(capsys.readouterr().out)
    name = printed["CreateTrainingJob"]["TrainingJobName"]
    assert re.fullmatch(r"image-classification-\d{14}", name)
    data = printed["CreateTrainingJob"]["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"]
    assert re.fullmatch(r"s3://models/image-classification/data/[0-9a-f]{16}/", data)
    assert printed == {
        "CreateTrainingJob": request(name, data),
        "SourceCode": {
            "entry_script": "train.py",
            "requirements": "requirements.txt",
            "files": [path.name for path in job.source_files()],
        },
    }


def test_the_job_is_created_with_the_request_of_the_dry_run(aws, capsys):
    options = [
        *NEEDED,
        "--train",
        "s3://other/train",
        "--spot",
        "true",
        "--max-run",
        "600",
        "--instance-type",
        "ml.c6i.2xlarge",
    ]
    options += ["--hyperparameters", "epochs=3", "learning-rate=1e-3", "--tags", "team=eyes", "note=a=b"]
    job.main([*options, "--dry-run", "true"])
    planned = json.loads(capsys.readouterr().out)["CreateTrainingJob"]
    name = job.start(aws, job.parse_options(options))
    assert (
        request(
            planned["TrainingJobName"],
            "s3://other/train/",
            HyperParameters={"epochs": "3", "learning-rate": "0.001"},
            ResourceConfig={"InstanceType": "ml.c6i.2xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30},
            StoppingCondition={"MaxRuntimeInSeconds": 600, "MaxWaitTimeInSeconds": 1200},
            EnableManagedSpotTraining=True,
            CheckpointConfig={
                "S3Uri": f"s3://models/image-classification/{planned['TrainingJobName']}/checkpoints",
                "LocalPath": "/opt/ml/checkpoints",
            },
            Tags=[{"Key": "team", "Value": "eyes"}, {"Key": "note", "Value": "a=b"}],
        )
        == planned
    )
    described = aws.client("sagemaker").describe_training_job(TrainingJobName=name)
    del described["AlgorithmSpecification"]["MetricDefinitions"]  # moto's own
    tags = aws.client("sagemaker").list_tags(ResourceArn=described["TrainingJobArn"])["Tags"]
    created = {"Tags": tags} | {key: described[key] for key in planned.keys() - {"Tags"}}
    assert created == json.loads(json.dumps(planned).replace(planned["TrainingJobName"], name))


def test_a_job_gets_only_the_modules_that_train_py_imports_and_its_requirements(aws, images):
    name = start(aws, "--train", images)
    prefix = f"image-classification/{name}/input/code/"
    files = {key.removeprefix(prefix): content for key, content in objects(aws, prefix).items()}
    modules = ["augment", "budget", "calibration", "charts", "checkpoint", "data", "export", "fit", "folders"]
    modules += ["lineage", "model", "patches", "report", "resnet", "schedule", "train"]
    expected = {f"{module}.py": (ROOT / f"training/{module}.py").read_bytes() for module in modules}
    for path in (ROOT / "endpoint/inference.py", ROOT / "endpoint/pixels.py", ROOT / "training/requirements.txt"):
        expected[path.name] = path.read_bytes()
    assert files == expected


@pytest.mark.skipif(not (ROOT / ".venv").exists(), reason="make test-launch")
def test_the_sdks_start_script_trains_and_the_model_is_packaged_for_the_endpoint(aws, images, tmp_path, capsys):
    channels = [part for name in ("train", "validation", "test") for part in (f"--{name}", images)]
    name = start(aws, *channels, "--hyperparameters", "epochs=2", "learning-rate=1e-3", "label-smoothing=0")
    described = aws.client("sagemaker").describe_training_job(TrainingJobName=name)
    container = run_container(aws, described, tmp_path / "ml")
    assert container.returncode == 0, container.stdout

    variables = dict(
        re.findall(r"^export (\w+)='(.*)'$", (tmp_path / "ml/input/sm_training.env").read_text(), re.MULTILINE)
    )
    read = set(re.findall(r'"(SM_\w+)"', (ROOT / "training/train.py").read_text()))
    read -= {"SM_CHANNEL_", "SM_CHANNEL_TRAINING"}
    assert {variable: variables[variable] for variable in read} == {
        "SM_CHANNEL_TRAIN": f"{tmp_path}/ml/input/data/train",
        "SM_CHANNEL_VALIDATION": f"{tmp_path}/ml/input/data/validation",
        "SM_CHANNEL_TEST": f"{tmp_path}/ml/input/data/test",
        "SM_MODEL_DIR": f"{tmp_path}/ml/model",
        "SM_OUTPUT_DATA_DIR": f"{tmp_path}/ml/output/data",
    }
    assert "Ignoring unknown options" not in container.stdout
    model = {path.name: path.read_bytes() for path in (tmp_path / "ml/model").iterdir()}
    metadata = json.loads(model["metadata.json"])
    given = {"epochs": 2, "learning_rate": 0.001, "label_smoothing": 0}
    assert {option: metadata["hyperparameters"][option] for option in given} == given
    counts = {"bright cat": 12, "dark dog": 12}
    assert metadata["images"] == {"train": counts, "validation": counts, "test": counts}

    put_model(aws, name, archive_of(model))
    job.main([*NEEDED, "--resume", name, "--lib", "none"])
    archive = package.pack(package.collect(tmp_path / "ml/model", []))
    key = package.key_of(archive)
    beside = key.replace("model.tar.gz", "metadata.json")
    assert objects(aws, "models/") == {key: archive, beside: model["metadata.json"]}
    assert capsys.readouterr().out == (
        "make build && .local/venvs/sam/bin/sam deploy --region us-east-1 "
        f"--parameter-overrides EndpointType=serverless ModelDataUrl=s3://models/{key}\n"
    )


def test_a_folder_is_uploaded_once_even_after_it_is_renamed(aws, images):
    (images / ".cache").mkdir()
    (images / ".cache/thumbnail.png").write_bytes(b"hidden")
    (images / "readme.txt").write_bytes(b"in no class")
    (images / "dark dog/Thumbs.db").write_bytes(b"left by Windows")
    (images / "__MACOSX/dark dog").mkdir(parents=True)
    (images / "__MACOSX/dark dog/._0.png").write_bytes(b"left by macOS")
    uri, *counts = bucket.upload_images(aws.client("s3"), images, "models", "name/data")
    assert counts == [24, 24]
    prefix = uri.removeprefix("s3://models/")
    expected = {prefix + path.relative_to(images).as_posix(): path.read_bytes() for path in images.glob("* */*.png")}
    assert objects(aws) == expected
    renamed = images.rename(images.with_name("renamed"))
    assert bucket.upload_images(aws.client("s3"), renamed, "models", "name/data") == (uri, 24, 0)
    (renamed / "dark dog/0+.png").write_bytes(b"another")
    assert bucket.upload_images(aws.client("s3"), renamed, "models", "name/data")[0] != uri


def test_a_folder_without_classes_is_rejected(aws, tmp_path):
    with pytest.raises(errors.DataFolderError, match="nowhere is not a folder"):
        start(aws, "--train", tmp_path / "nowhere")
    (tmp_path / "one/cat").mkdir(parents=True)
    (tmp_path / "one/cat/0.png").touch()
    with pytest.raises(errors.DataFolderError, match="one needs at least two folders of images"):
        start(aws, "--train", tmp_path / "one")
    (tmp_path / "one/dog").mkdir()
    Path(os.fsdecode(bytes(tmp_path / "one/dog") + b"/\xff.png")).touch()
    with pytest.raises(errors.DataFolderError, match=r"rename the file, its name is not valid UTF-8"):
        start(aws, "--train", tmp_path / "one")


def test_the_status_of_the_job_is_printed_until_it_ends(capsys):
    sagemaker = boto3.client("sagemaker", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    with Stubber(sagemaker) as stub:
        for status, secondary, messages in [
            ("InProgress", "Starting", []),
            ("InProgress", "Training", ["Preparing the instances", "Training image download completed"]),
            ("Completed", "Completed", ["Training job completed"]),
        ]:
            described = {
                "TrainingJobName": "job-1",
                "TrainingJobArn": f"arn:aws:sagemaker:us-east-1:{ACCOUNT}:training-job/job-1",
                "TrainingJobStatus": status,
                "SecondaryStatus": secondary,
                "ModelArtifacts": {"S3ModelArtifacts": "s3://models/model.tar.gz"},
                "StoppingCondition": {},
                "CreationTime": 0,
            }
            if messages:
                transitions = [{"Status": secondary, "StartTime": 0, "StatusMessage": message} for message in messages]
                described["SecondaryStatusTransitions"] = transitions
            stub.add_response("describe_training_job", described, {"TrainingJobName": "job-1"})
        assert job.wait(sagemaker, "job-1", pause=0) == "s3://models/model.tar.gz"
    assert capsys.readouterr().err.splitlines() == [
        "0 s: InProgress, Starting",
        "0 s: InProgress, Training: Training image download completed",
        "0 s: Completed, Completed: Training job completed",
    ]


@pytest.mark.parametrize("status", ["Failed", "Stopped"])
def test_the_error_for_a_failed_job_has_the_reason_and_the_command_for_its_log(status, aws):
    name = start(aws, "--train", "s3://other/train")
    job_of(name).training_job_status = status
    job_of(name).failure_reason = "AlgorithmError: exit code: 1\n  UnreadableImageError"
    with pytest.raises(errors.TrainingFailedError) as raised:
        job.main([*NEEDED, "--resume", name])
    assert str(raised.value) == (
        f"{name}: AlgorithmError: exit code: 1 UnreadableImageError\n"
        f"Its log: aws logs tail /aws/sagemaker/TrainingJobs --log-stream-name-prefix {name}/ --since 1d "
        "--region us-east-1"
    )


@pytest.fixture
def interruptible():
    """Python's default handler for Ctrl-C, which shells disable for background processes."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_leaves_the_job_running_and_prints_how_to_resume(aws, interruptible):
    name = start(aws, "--train", "s3://other/train")
    job_of(name).training_job_status = "InProgress"
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(SystemExit) as raised:
        job.main([*NEEDED, "--resume", name])
    assert raised.value.code == (
        "\nThe job continues without this command. To wait for it again: .local/venvs/sagemaker/bin/python "
        f"-m training.launch.job --region us-east-1 --bucket models --resume {name}\n"
        f"To stop it: aws sagemaker stop-training-job --region us-east-1 --training-job-name {name}"
    )


def test_a_model_archive_with_files_outside_the_folder_is_rejected(aws, tmp_path):
    for name in ("../evil", "/evil", "a/../../evil"):
        put_model(aws, "job", archive_of({name: b""}))
        with pytest.raises(errors.ModelArchiveError, match=re.escape(f"{name} is outside the folder")):
            bucket.fetch_model(aws.client("s3"), "s3://models/image-classification/job/output/model.tar.gz", tmp_path)
    put_model(aws, "job", b"not an archive")
    with pytest.raises(errors.ModelArchiveError, match="cannot be unpacked"):
        bucket.fetch_model(aws.client("s3"), "s3://models/image-classification/job/output/model.tar.gz", tmp_path)
    assert not list(tmp_path.rglob("evil"))


def test_every_numeric_option_of_train_py_is_a_hyperparameter():
    command = [ROOT / ".venv/bin/python", ROOT / "training/train.py", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    options = set(re.findall(r"^  --([\w-]+)", shown, re.MULTILINE))
    folders = {"train", "validation", "test", "model-dir", "output-data-dir", "pretrained", "checkpoint-dir"}
    given = dict.fromkeys(options - folders, "1")
    assert job.numbers(given) == dict.fromkeys(options - folders, 1)


@pytest.mark.parametrize(
    "error, message, options",
    [
        ("UnknownHyperparameterError", "epoch: train.py has validation-fraction, ", ["--hyperparameters", "epoch=3"]),
        ("UnknownHyperparameterError", "train: train.py has ", ["--hyperparameters", "train=folder"]),
        ("InvalidOptionError", "--hyperparameters must be numbers: ", ["--hyperparameters", "epochs=many"]),
        ("InvalidOptionError", "--hyperparameters must be NAME=VALUE, not epochs", ["--hyperparameters", "epochs"]),
        ("InvalidOptionError", "--tags must be NAME=VALUE, not =eyes", ["--tags", "=eyes"]),
        ("InvalidOptionError", "--bucket is missing: use one of yours", ["--bucket", ""]),
        ("InvalidOptionError", "--role must be the ARN of a role", ["--role", "training"]),
        ("InvalidOptionError", "--job-name must be at most 48 letters", ["--job-name", "my_job"]),
        (
            "InvalidOptionError",
            "no training image for --instance-type",
            ["--dry-run", "true", "--instance-type", "ml.c7g.large"],
        ),
        ("InvalidOptionError", "no training image for --instance-type", ["--dry-run", "true", "--region", "mars-1"]),
        ("InvalidOptionError", "--resume starts no job", ["--resume", "job-1", "--dry-run", "true"]),
        ("InvalidOptionError", "--max-wait includes the training time", ["--spot", "true", "--max-wait", "60"]),
    ],
)
def test_invalid_options_are_reported_before_anything_is_sent(error, message, options):
    with pytest.raises(getattr(errors, error), match=f"^{re.escape(message)}"):
        job.main([*NEEDED, *options])


def test_an_error_ends_the_command_with_its_name_and_no_traceback():
    command = [sys.executable, "-m", "training.launch.job", *NEEDED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        "InvalidOptionError: --region is missing: neither AWS_DEFAULT_REGION nor the profile sets one\n",
    )


def test_without_credentials_the_error_says_how_to_get_them():
    with pytest.raises(errors.CredentialsError, match="no AWS credentials: run `aws configure`"):
        job.main([*NEEDED, "--region", "us-east-1", "--train", "s3://other/train"])


def test_a_mistyped_bucket_is_rejected_and_not_created(aws):
    with pytest.raises(errors.BucketError, match="modles does not exist: create it with `aws s3 mb s3://modles`"):
        job.main(["--bucket", "modles", "--role", ROLE, "--train", "s3://other/train"])
    assert [found["Name"] for found in aws.client("s3").list_buckets()["Buckets"]] == ["models"]


def test_a_bucket_in_another_region_is_rejected(aws):
    with pytest.raises(errors.BucketError, match="models is in us-east-1, but the job would run in eu-west-1"):
        job.main([*NEEDED, "--region", "eu-west-1", "--train", "s3://other/train"])


def test_a_role_that_sagemaker_cannot_assume_is_rejected(aws):
    statement = {"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}
    trust = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    aws.client("iam").update_assume_role_policy(RoleName="training", PolicyDocument=trust)
    with pytest.raises(errors.RoleError, match=r"trust policy does not allow 'sagemaker\.amazonaws\.com'"):
        job.main([*NEEDED, "--train", "s3://other/train"])


def test_a_role_without_a_needed_permission_is_rejected(aws, monkeypatch):
    denied = {"EvalActionName": "ecr:GetAuthorizationToken", "EvalDecision": "implicitDeny"}
    response = ActionResult({"EvaluationResults": [denied]})
    monkeypatch.setattr(IamResponse, "simulate_principal_policy", lambda self: response, raising=False)
    with pytest.raises(errors.RoleError, match="Missing permissions: ecr:GetAuthorizationToken"):
        job.main([*NEEDED, "--train", "s3://other/train"])


def test_an_exceeded_quota_says_what_to_request(aws, monkeypatch):
    limit = "The account-level service limit 'ml.p3.2xlarge for training job usage' is 0 Instances."

    def reject(self):
        raise JsonRESTError("ResourceLimitExceeded", limit)

    monkeypatch.setattr(SageMakerResponse, "create_training_job", reject)
    with pytest.raises(errors.QuotaError) as raised:
        job.main([*NEEDED, "--train", "s3://other/train", "--instance-type", "ml.p3.2xlarge"])
    assert str(raised.value) == (
        "your account's quota allows no more ml.p3.2xlarge for training: request an increase at Service Quotas, or "
        "choose another --instance-type (new accounts have CPU types and usually no GPUs). "
        f"AWS's message: {limit}"
    )
