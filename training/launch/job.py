"""Train on SageMaker: the same train.py, as a training job; then pack its model for the endpoint.

    python3 tools/install.py launch                      # once: SageMaker's SDK in .local/venvs/sagemaker, about 1 GB
    alias launch='.local/venvs/sagemaker/bin/python -m training.launch.job'
    launch --bucket B --role ROLE-ARN --dry-run true     # the request as JSON: no account, no network, nothing sent
    launch --bucket B --role ROLE-ARN                    # the digits of training/prepare.py
    launch --bucket B --role ROLE-ARN --train pictures --hyperparameters epochs=40 flip=0.5 --spot true
    launch --bucket B --resume JOB-NAME                  # wait again for a job that was started before, and pack it

Data is a folder of class folders, which is uploaded, or the s3:// URI of one. What is written to the bucket:

    NAME/data/HASH/...           the pictures; the same pictures are not sent twice
    NAME/JOB/input/...           training/, with endpoint/inference.py beside it, and the SDK's own start scripts
    NAME/JOB/output/...          what the job wrote: model.tar.gz with model.onnx and metadata.json; output.tar.gz
    models/HASH/model.tar.gz     the model as endpoint/package.py packs it; the last line printed deploys it

The role trusts sagemaker.amazonaws.com, may list, read and write the bucket, write logs, and pull AWS's images
(ecr:GetAuthorizationToken, BatchGetImage, GetDownloadUrlForLayer, BatchCheckLayerAvailability).

A job costs its instance's seconds. Quotas: a new account may use some instance types and not others, as a rule none
with GPUs; train.py uses no GPU, and the default has 4 cores and 16 GB. Spot is cheaper, but train.py writes no
checkpoints: when AWS takes the instance back, training begins again.
"""

import argparse
import json
import logging
import re
import shutil
import sys
import tempfile
import time
from modulefinder import ModuleFinder
from pathlib import Path
from types import SimpleNamespace

try:
    import boto3
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from sagemaker.core import image_uris
    from sagemaker.core.helper.iam_role_resolver import RoleValidationError
    from sagemaker.core.helper.session_helper import Session
    from sagemaker.core.training import configs
    from sagemaker.train import ModelTrainer
except ModuleNotFoundError as error:
    sys.exit(f"No {error.name} here; `python3 tools/install.py launch` installs it into .local/venvs/sagemaker")

from endpoint.package import PackageError
from training.launch.bucket import check_bucket, pack_model, upload_pictures
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


def source_files():
    """The files that a job runs: train.py, the modules that it imports, and what pip installs for them."""
    finder = ModuleFinder([str(TRAINING), str(ROOT / "endpoint")])
    finder.run_script(str(TRAINING / "train.py"))  # compiles and reads it; runs nothing
    modules = sorted(module.__file__ for module in finder.modules.values() if module.__file__)
    return [*map(Path, modules), TRAINING / "requirements.txt"]


class DryRun(Exception):
    """Raised where a job would be started, with the request that would have been sent."""

    def __init__(self, request):
        super().__init__()
        self.request = request


def parse_options(argv=None):
    """Options, checked as far as is possible without an account. Raises InvalidOptionError and its like."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--bucket", default="", help="for pictures, code and models; in the job's region")
    add("--role", default="", help="ARN of the role that the job has")
    add("--region", help="[AWS_DEFAULT_REGION, or the profile's; in a dry run else us-east-1]")
    add("--train", help="folder of class folders, or its s3:// URI [digits]")
    add("--validation", help="same classes or fewer; without it, a part of the training data is set aside")
    add("--test", help="same classes or fewer")
    add("--hyperparameters", nargs="*", default=[], metavar="NAME=VALUE", help="options of train.py")
    add("--instance-type", default="ml.m5.xlarge", help="[%(default)s]")
    add("--spot", choices=["true", "false"], default="false")
    add("--max-run", type=int, default=3600, metavar="SECONDS", help="then the job is stopped [%(default)s]")
    add("--max-wait", type=int, metavar="SECONDS", help="with --spot true: until it is done [twice --max-run]")
    add("--job-name", default="image-classification", metavar="NAME", help="a prefix, of jobs and keys [%(default)s]")
    add("--tags", nargs="*", default=[], metavar="NAME=VALUE")
    add("--lib", choices=["container", "none"], default="container", help="see endpoint/package.py")
    add("--resume", metavar="JOB-NAME", help="start nothing; wait for this job")
    add("--dry-run", choices=["true", "false"], default="false", help="print the request")
    options = parser.parse_args(argv)
    options.spot, options.dry_run = options.spot == "true", options.dry_run == "true"
    options.max_wait = options.max_wait or 2 * options.max_run
    options.tags = pairs("--tags", options.tags)
    options.hyperparameters = numbers(pairs("--hyperparameters", options.hyperparameters))
    if not options.bucket:
        raise InvalidOptionError("--bucket is missing: name one of yours, or make one with `aws s3 mb s3://NAME`")
    if not options.resume and not re.fullmatch(r"arn:aws[\w-]*:iam::\d{12}:role/\S+", options.role):
        raise InvalidOptionError(
            "--role takes the ARN of a role, as `aws iam get-role --role-name NAME --query Role.Arn` prints it; "
            "--help says what it must be allowed"
        )
    if len(options.job_name) > 48 or not re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*", options.job_name):
        raise InvalidOptionError("--job-name takes up to 48 letters and digits, and hyphens between them")
    if options.resume and options.dry_run:
        raise InvalidOptionError("--resume starts no job, so there is nothing that --dry-run could print")
    if options.spot and options.max_wait < options.max_run:
        raise InvalidOptionError("--max-wait is for waiting and running, so it can't be less than --max-run")
    if options.train is None and (options.validation or options.test):
        raise InvalidOptionError("--validation and --test go with a --train: without one, all three are the digits")
    if options.train is None:
        options.train, options.validation, options.test = (str(DIGITS / part) for part in CHANNELS)
    return options


def pairs(option, values):
    """{name: value} of NAME=VALUE. Raises InvalidOptionError."""
    for value in values:
        if not re.match(r"[^=]+=.", value):
            raise InvalidOptionError(f"{option} takes NAME=VALUE, not {value}")
    return dict(value.split("=", 1) for value in values)


def numbers(hyperparameters):
    """{name: int or float} as train.py takes them. Raises UnknownHyperparameterError, InvalidOptionError."""
    # Its text is read, since importing it takes PyTorch, which is not in this environment.
    source = (TRAINING / "train.py").read_text(encoding="utf-8")
    known = dict(re.findall(r'add\(\s*"--([\w-]+)",\s*type=(int|float)\b', source))
    unknown = sorted(hyperparameters.keys() - known.keys())
    if unknown:
        raise UnknownHyperparameterError(f"{', '.join(unknown)}: train.py takes {', '.join(known)}")
    try:
        return {name: (int if known[name] == "int" else float)(value) for name, value in hyperparameters.items()}
    except ValueError as error:
        raise InvalidOptionError(f"--hyperparameters takes numbers: {error}") from None


def open_session(region, dry_run):
    """What boto3 finds of credentials; in a dry run none, and nothing is sent. Raises InvalidOptionError."""
    keys = ["none", "none"] if dry_run else []
    region = region or boto3.Session(*keys).region_name or ("us-east-1" if dry_run else None)
    if not region:
        raise InvalidOptionError("--region is missing: neither AWS_DEFAULT_REGION nor the profile names one")
    session = boto3.Session(*keys, region_name=region)
    if dry_run:
        say("Dry run: nothing is sent.")
        session.events.register("before-call", answer)
    return session


def answer(model, params, **_):
    """In place of AWS, before anything is sent. Raises DryRun for CreateTrainingJob."""
    if model.name == "CreateTrainingJob":
        raise DryRun(json.loads(params["body"]))
    answers = {"ListBuckets": {"Buckets": []}, "GetRole": {"Role": {}}}
    return SimpleNamespace(status_code=200), answers.get(model.name, {})


def start(session, options):
    """Start the job; returns its name. Raises LaunchError, DryRun, and what boto3 and the SDK raise."""
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
            source, files, sent = upload_pictures(s3, folder, options.bucket, f"{options.job_name}/data")
            say(f"{folder}: {files:,} files, {sent:,} of them new, to {source}")
        if source:
            source = source.rstrip("/") + "/"  # s3://bucket/train would be the start of train-2 too
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
            output_data_config=configs.OutputDataConfig(s3_output_path=f"s3://{options.bucket}/{options.job_name}"),
            tags=[configs.Tag(key=name, value=value) for name, value in options.tags.items()],
        )
        trainer.train(channels, wait=False, logs=False)
    return trainer._latest_training_job.training_job_name


def wait(sagemaker, job, pause=10):
    """Say how the job is doing until it is done; returns the URI of its model. Raises TrainingFailedError."""
    started = time.monotonic()
    while True:
        found = sagemaker.describe_training_job(TrainingJobName=job)
        status = found["TrainingJobStatus"]
        latest = (found.get("SecondaryStatusTransitions") or [{}])[-1].get("StatusMessage", "")
        say(f"{time.monotonic() - started:.0f} s: {status}, {found['SecondaryStatus']}: {latest}".rstrip(": "))
        if status == "Completed":
            return found["ModelArtifacts"]["S3ModelArtifacts"]
        if status in ("Failed", "Stopped"):
            region = sagemaker.meta.region_name
            raise TrainingFailedError(
                f"{job}: {' '.join(found.get('FailureReason', latest).split())}\nWhat it printed: aws logs tail "
                f"/aws/sagemaker/TrainingJobs --log-stream-name-prefix {job}/ --since 1d --region {region}"
            )
        time.sleep(pause)


def say(text):
    print(text, file=sys.stderr, flush=True)


def main(argv=None):
    options = parse_options(argv)
    logging.getLogger("sagemaker").setLevel(logging.CRITICAL)  # what it logs of an error, it raises too
    going_on = "No job is known to have started; `aws sagemaker list-training-jobs` shows the latest."
    try:
        session = open_session(options.region, options.dry_run)
        job = options.resume or start(session, options)
        going_on = (
            f"The job goes on without this command. To wait for it again: {COMMAND} "
            f"--region {session.region_name} --bucket {options.bucket} --resume {job}\nTo stop it: aws sagemaker "
            f"stop-training-job --region {session.region_name} --training-job-name {job}"
        )
        say(f"{job}\n{going_on}")
        model = wait(session.client("sagemaker"), job)
        url = pack_model(session.client("s3"), model, options.bucket, options.lib == "container")
    except DryRun as planned:
        files = [path.name for path in source_files()]
        print(json.dumps({"CreateTrainingJob": planned.request, "SourceCode": CODE | {"files": files}}, indent=2))
    except KeyboardInterrupt:
        sys.exit(f"\n{going_on}")
    except (Boto3Error, BotoCoreError, ClientError, RoleValidationError) as error:
        raise explain(error, options.instance_type) from error
    else:
        print(
            f"make build && .local/venvs/sam/bin/sam deploy --region {session.region_name} "
            f"--parameter-overrides EndpointType=serverless ModelDataUrl={url}"
        )


if __name__ == "__main__":
    try:
        main()
    except (LaunchError, PackageError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
