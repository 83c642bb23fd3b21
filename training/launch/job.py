"""Run train.py as a SageMaker training job, then package the model for the endpoint.

    python3 tools/install.py launch                      # once: SageMaker's SDK in .local/venvs/sagemaker, about 1 GB
    alias launch='.local/venvs/sagemaker/bin/python -m training.launch.job'
    launch --bucket B --role ROLE-ARN --dry-run true     # the request as JSON: no account, no network, nothing sent
    launch --bucket B --role ROLE-ARN                    # the digits of training/prepare.py
    launch --bucket B --role ROLE-ARN --train images --hyperparameters epochs=40 flip=0.5 --spot true
    launch --bucket B --resume JOB-NAME                  # wait for a job that was started before, and package it

Data is a folder of class folders, which is uploaded, or the s3:// URI of one. Written to the bucket:

    NAME/data/HASH/...           the images; the same images are not uploaded twice
    NAME/JOB/input/...           train.py and the modules it imports, and the SDK's start scripts
    NAME/JOB/checkpoints/...     the state of a training on spot instances
    NAME/JOB/output/...          the job's output: model.tar.gz with model.onnx and metadata.json; output.tar.gz
    models/HASH/model.tar.gz     the model, packaged by endpoint/package.py; the last line printed deploys it

The role must trust sagemaker.amazonaws.com and have permission to list, read and write the bucket, to write logs, and
to pull AWS's container images (ecr:GetAuthorizationToken, BatchGetImage, GetDownloadUrlForLayer,
BatchCheckLayerAvailability).

A job is billed by the second of its instance. A new account has quotas for certain instance types only, usually none
with GPUs. train.py uses no GPU; the default instance has 4 cores and 16 GB. Spot instances are cheaper and can be
interrupted: SageMaker then waits for another one and starts the job again, which continues from its checkpoints.
"""

import argparse
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from modulefinder import ModuleFinder
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # & in a script ignores it
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # during the imports below, Ctrl-C ends it without a traceback

try:
    import boto3
    from boto3.exceptions import Boto3Error
    from botocore.client import BaseClient
    from botocore.exceptions import BotoCoreError, ClientError
    from sagemaker.core import image_uris
    from sagemaker.core.helper.iam_role_resolver import RoleValidationError
    from sagemaker.core.helper.session_helper import Session
    from sagemaker.core.training import configs
    from sagemaker.train import ModelTrainer
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} is missing: `python3 tools/install.py launch` installs it into .local/venvs/sagemaker")

from endpoint.package import PackageError
from training.launch.bucket import check_bucket, pack_model, upload_images
from training.launch.errors import (
    InvalidOptionError,
    LaunchError,
    TrainingFailedError,
    UnknownHyperparameterError,
    explain,
)

ROOT = Path(__file__).parents[2]
TRAINING = ROOT / "training"
DIGITS = ROOT / ".local/data/digits"
CHANNELS = ["train", "validation", "test"]
IMAGE = {"framework": "pytorch-amzn2023", "version": "2.13", "image_scope": "training"}
COMMAND = ".local/venvs/sagemaker/bin/python -m training.launch.job"
CODE = {"entry_script": "train.py", "requirements": "requirements.txt"}
NO_TELEMETRY = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}


def source_files() -> list[Path]:
    """The files uploaded for a job: train.py, the project's modules that it imports, and requirements.txt."""
    finder = ModuleFinder([str(TRAINING), str(ROOT / "endpoint")])
    finder.run_script(str(TRAINING / "train.py"))  # compiles the code but does not run it
    modules: list[Any] = list(finder.modules.values())  # Any: typeshed lacks __file__
    return [*sorted(Path(module.__file__) for module in modules if module.__file__), TRAINING / "requirements.txt"]


class DryRun(Exception):
    """Raised instead of starting a job; holds the request that would have been sent."""

    def __init__(self, request: dict[str, Any]) -> None:
        super().__init__()
        self.request = request


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the options and check what can be checked without an account.

    Raises InvalidOptionError, UnknownHyperparameterError.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--bucket", default="", help="for images, code and models; in the job's region")
    add("--role", default="", help="ARN of the job's execution role")
    add("--region", help="[AWS_DEFAULT_REGION, then the profile's, then, in a dry run, us-east-1]")
    add("--train", help="folder of class folders, or its s3:// URI [digits]")
    add("--validation", help="same classes or fewer; without it, a fraction of the training data is held out")
    add("--test", help="same classes or fewer")
    add("--hyperparameters", nargs="*", default=[], metavar="NAME=VALUE", help="options of train.py")
    add("--instance-type", default="ml.m5.xlarge", help="[%(default)s]")
    add("--spot", choices=["true", "false"], default="false", help="cheaper; continues after interruptions")
    add("--max-run", type=int, default=3600, metavar="SECONDS", help="timeout of the training [%(default)s]")
    add("--max-wait", type=int, metavar="SECONDS", help="with --spot true: total timeout [twice --max-run]")
    add("--job-name", default="image-classification", metavar="NAME", help="prefix of job names and keys [%(default)s]")
    add("--tags", nargs="*", default=[], metavar="NAME=VALUE")
    add("--lib", choices=["container", "none"], default="container", help="see endpoint/package.py")
    add("--resume", metavar="JOB-NAME", help="wait for this job instead of starting one")
    add("--dry-run", choices=["true", "false"], default="false", help="print the request and send nothing")
    options = parser.parse_args(argv)
    options.spot, options.dry_run = options.spot == "true", options.dry_run == "true"
    options.max_wait = options.max_wait or 2 * options.max_run
    options.tags = pairs("--tags", options.tags)
    options.hyperparameters = numbers(pairs("--hyperparameters", options.hyperparameters))
    if not options.bucket:
        raise InvalidOptionError("--bucket is missing: use one of yours, or create one with `aws s3 mb s3://NAME`")
    if not options.resume and not re.fullmatch(r"arn:aws[\w-]*:iam::\d{12}:role/\S+", options.role):
        raise InvalidOptionError(
            "--role must be the ARN of a role, as printed by `aws iam get-role --role-name NAME --query Role.Arn`; "
            "--help lists the permissions it needs"
        )
    if len(options.job_name) > 48 or not re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*", options.job_name):
        raise InvalidOptionError("--job-name must be at most 48 letters and digits, with hyphens only between them")
    if options.resume and options.dry_run:
        raise InvalidOptionError("--resume starts no job, so --dry-run has no request to print")
    if options.spot and options.max_wait < options.max_run:
        raise InvalidOptionError("--max-wait includes the training time, so it must be at least --max-run")
    if options.train is None and (options.validation or options.test):
        raise InvalidOptionError("--validation and --test require --train: without it, all three are the digits")
    if options.train is None:
        options.train, options.validation, options.test = (str(DIGITS / part) for part in CHANNELS)
    return options


def pairs(option: str, values: list[str]) -> dict[str, str]:
    """Parse NAME=VALUE strings into {name: value}. Raises InvalidOptionError."""
    for value in values:
        if not re.match(r"[^=]+=.", value):
            raise InvalidOptionError(f"{option} must be NAME=VALUE, not {value}")
    return dict(value.split("=", 1) for value in values)


def numbers(hyperparameters: dict[str, str]) -> dict[str, int | float]:
    """Convert the values to the types of train.py's options. Raises UnknownHyperparameterError, InvalidOptionError."""
    # Parsed from its source, because importing it requires PyTorch, which is not in this environment.
    source = (TRAINING / "train.py").read_text(encoding="utf-8")
    known = dict(re.findall(r'add\(\s*"--([\w-]+)",\s*type=(int|float)\b', source))
    unknown = sorted(hyperparameters.keys() - known.keys())
    if unknown:
        raise UnknownHyperparameterError(f"{', '.join(unknown)}: train.py has {', '.join(known)}")
    try:
        return {name: (int if known[name] == "int" else float)(value) for name, value in hyperparameters.items()}
    except ValueError as error:
        raise InvalidOptionError(f"--hyperparameters must be numbers: {error}") from None


def open_session(region: str | None, dry_run: bool) -> boto3.Session:
    """A boto3 session; in a dry run without credentials, and it sends nothing. Raises InvalidOptionError."""
    keys = ["none", "none"] if dry_run else []
    region = region or boto3.Session(*keys).region_name or ("us-east-1" if dry_run else None)
    if not region:
        raise InvalidOptionError("--region is missing: neither AWS_DEFAULT_REGION nor the profile sets one")
    session = boto3.Session(*keys, region_name=region)
    if dry_run:
        say("Dry run: nothing is sent.")
        session.events.register("before-call", fake_response)
    return session


def fake_response(model: Any, params: dict[str, Any], **_: Any) -> tuple[SimpleNamespace, dict[str, Any]]:
    """Replace AWS's response, so that botocore sends nothing. Raises DryRun for CreateTrainingJob."""
    if model.name == "CreateTrainingJob":
        raise DryRun(json.loads(params["body"]))
    responses: dict[str, dict[str, Any]] = {"ListBuckets": {"Buckets": []}, "GetRole": {"Role": {}}}
    return SimpleNamespace(status_code=200), responses.get(model.name, {})


def start(session: boto3.Session, options: argparse.Namespace) -> str:
    """Start the job and return its name. Raises LaunchError, DryRun, and the errors of boto3 and the SDK."""
    try:
        image = image_uris.retrieve(**IMAGE, region=session.region_name, instance_type=options.instance_type)
    except ValueError as error:
        raise InvalidOptionError(f"no training image for --instance-type or --region: {error}") from None
    s3 = session.client("s3")
    check_bucket(s3, options.bucket)
    channels = []
    for name in CHANNELS:
        source = getattr(options, name)
        if source and not source.startswith("s3://"):
            folder = source
            source, files, uploaded = upload_images(s3, folder, options.bucket, f"{options.job_name}/data")
            say(f"{os.path.relpath(folder)}: {files:,} files, {uploaded:,} of them new, to {source}")
        if source:
            source = source.rstrip("/") + "/"  # the prefix s3://bucket/train would also match train-2
            channels.append(configs.InputData(channel_name=name, data_source=source))
    with tempfile.TemporaryDirectory() as source_dir:
        for path in source_files():
            shutil.copy(path, source_dir)
        trainer = ModelTrainer(
            sagemaker_session=Session(session, default_bucket=options.bucket, sagemaker_config=NO_TELEMETRY),
            role=options.role,
            base_job_name=options.job_name,
            training_image=image,
            source_code=configs.SourceCode(source_dir=source_dir, **CODE),
            hyperparameters=options.hyperparameters,
            compute=configs.Compute(
                instance_type=options.instance_type, instance_count=1, enable_managed_spot_training=options.spot
            ),
            stopping_condition=configs.StoppingCondition(
                max_runtime_in_seconds=options.max_run,
                max_wait_time_in_seconds=options.max_wait if options.spot else None,
            ),
            checkpoint_config=configs.CheckpointConfig() if options.spot else None,  # by default NAME/JOB/checkpoints
            output_data_config=configs.OutputDataConfig(s3_output_path=f"s3://{options.bucket}/{options.job_name}"),
            tags=[configs.Tag(key=name, value=value) for name, value in options.tags.items()],
        )
        trainer.train(channels, wait=False, logs=False)
    return trainer._latest_training_job.training_job_name


def wait(sagemaker: BaseClient, job: str, pause: float = 10) -> str:
    """Print the job's status every `pause` seconds until it ends. Returns the model's URI.

    Raises TrainingFailedError.
    """
    started = time.monotonic()
    while True:
        described = sagemaker.describe_training_job(TrainingJobName=job)
        status = described["TrainingJobStatus"]
        latest = (described.get("SecondaryStatusTransitions") or [{}])[-1].get("StatusMessage", "")
        say(f"{time.monotonic() - started:.0f} s: {status}, {described['SecondaryStatus']}: {latest}".rstrip(": "))
        if status == "Completed":
            return described["ModelArtifacts"]["S3ModelArtifacts"]
        if status in ("Failed", "Stopped"):
            region = sagemaker.meta.region_name
            raise TrainingFailedError(
                f"{job}: {' '.join(described.get('FailureReason', latest).split())}\nIts log: aws logs tail "
                f"/aws/sagemaker/TrainingJobs --log-stream-name-prefix {job}/ --since 1d --region {region}"
            )
        time.sleep(pause)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> None:
    options = parse_options(argv)
    logging.getLogger("sagemaker").setLevel(logging.CRITICAL)  # it also raises the errors that it logs
    next_steps = "It is unknown whether a job has started: `aws sagemaker list-training-jobs` lists the latest."
    try:
        session = open_session(options.region, options.dry_run)
        job = options.resume or start(session, options)
        next_steps = (
            f"The job continues without this command. To wait for it again: {COMMAND} "
            f"--region {session.region_name} --bucket {options.bucket} --resume {job}\nTo stop it: aws sagemaker "
            f"stop-training-job --region {session.region_name} --training-job-name {job}"
        )
        say(f"{job}\n{next_steps}")
        model = wait(session.client("sagemaker"), job)
        url = pack_model(session.client("s3"), model, options.bucket, options.lib == "container")
    except DryRun as planned:
        files = [path.name for path in source_files()]
        print(json.dumps({"CreateTrainingJob": planned.request, "SourceCode": CODE | {"files": files}}, indent=2))
    except KeyboardInterrupt:
        sys.exit(f"\n{next_steps}")
    except (Boto3Error, BotoCoreError, ClientError, RoleValidationError) as error:
        raise explain(error, options.instance_type) from error
    else:
        print(
            f"make build && .local/venvs/sam/bin/sam deploy --region {session.region_name} "
            f"--parameter-overrides EndpointType=serverless ModelDataUrl={url}"
        )


if __name__ == "__main__":
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        main()
    except (LaunchError, PackageError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
