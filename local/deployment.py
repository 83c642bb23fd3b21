"""Build template.yaml and deploy it to the local stack with the SAM CLI: python -m local.deployment build|up|down"""

import argparse
import contextlib
import json
import platform
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from endpoint.package import files_of
from local.command import LOCAL, ROOT, StackError, console, lock, report_errors, step
from local.emulator.processes import CONCURRENCY, REGION, Stack, clean_environment, running, start, stop
from local.registry import MODEL_URL, records, served, split

BUILD = LOCAL / "sam/build"  # must match samconfig.toml
BUILT = BUILD / "template.yaml"
STACK_NAME = "image-classification"
MODEL_BUCKET = "models"  # outside the stack, as on AWS
OUTPUTS = LOCAL / "outputs.json"
# As a module: the script sam names its Python by the path where it was installed.
SAM: list[str | Path] = [LOCAL / "venvs/sam/bin/python", "-m", "samcli"]


def sam(stack: Stack | None, *arguments: str) -> None:
    """Run the SAM CLI against the stack, or without any credentials if there is none."""
    environment = clean_environment() | {
        "SAM_CLI_TELEMETRY": "0",
        "SAM_CLI_POLL_DELAY": "0.1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_DEFAULT_REGION": REGION,
    }
    if stack:
        environment |= stack.aws_variables
    # sam build packages the functions with the runtime's Python, which it looks up on PATH.
    environment["PATH"] = f"{LOCAL / 'venvs/lambda/bin'}:{environment['PATH']}"
    config = ["--config-file", str(ROOT / "samconfig.toml"), "--config-env", "local"]
    command: list[str | Path] = [*SAM, *arguments, *config]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    log = LOCAL / "logs" / f"sam-{arguments[0]}.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text(result.stdout + result.stderr)
    if result.returncode:
        end = "\n".join((result.stdout + result.stderr).splitlines()[-30:])
        raise StackError(f"sam {arguments[0]} failed:\n{end}")


def architecture() -> str:
    """This machine's processor architecture, by Lambda's name."""
    machine = platform.machine()
    if machine not in ("x86_64", "aarch64"):
        raise StackError(f"Lambda does not support {machine} processors: the functions cannot be built here.")
    return {"aarch64": "arm64"}.get(machine, machine)


def build() -> None:
    """Run `sam build` for this machine's architecture, and what follows it in `make build` for AWS."""
    with step("Building the functions with sam build"):
        sam(None, "build", "--parameter-overrides", f"Architecture={architecture()}")
        for tool in ("share.py", "trim.py", "compile.py"):
            command = [LOCAL / "venvs/lambda/bin/python", ROOT / "tools" / tool, BUILD]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                raise StackError(f"tools/{tool} failed:\n{result.stdout}{result.stderr}".rstrip())


def upload_model(stack: Stack, archive: Path) -> str:
    """Upload what endpoint/package.py wrote to the emulated S3, under the same keys; return the archive's s3:// URL."""
    s3 = stack.client("s3")
    s3.create_bucket(Bucket=MODEL_BUCKET)
    folder = f"models/{archive.parent.name}"
    for path in files_of(archive):
        s3.upload_file(str(path), MODEL_BUCKET, f"{folder}/{path.name}")
    return f"s3://{MODEL_BUCKET}/{folder}/{archive.name}"


def deploy(stack: Stack, stack_name: str = STACK_NAME, template: Path = BUILT, **parameters: str) -> dict[str, str]:
    """Run `sam deploy` on a template that was built or packaged; return the CloudFormation stack's outputs."""
    overrides = [f'{key}="{value}"' for key, value in ({"Architecture": architecture()} | parameters).items()]
    options = ["--stack-name", stack_name, "--template-file", str(template)]
    sam(stack, "deploy", *options, "--parameter-overrides", *overrides)
    described = describe(stack, stack_name)
    return {output["OutputKey"]: output["OutputValue"] for output in described["Outputs"]}


def describe(stack: Stack, stack_name: str = STACK_NAME) -> dict[str, Any]:
    """The CloudFormation stack, from DescribeStacks; empty if it does not exist."""
    try:
        (described,) = stack.client("cloudformation").describe_stacks(StackName=stack_name)["Stacks"]
    except ClientError as error:
        if error.response["Error"]["Code"] != "ValidationError":
            raise
        return {}
    return described


def parameter(described: dict[str, Any], name: str) -> str:
    """A parameter; empty if there is no stack."""
    return {row["ParameterKey"]: row["ParameterValue"] for row in described.get("Parameters", [])}.get(name, "")


def deployed_model(described: dict[str, Any]) -> str:
    """The parameter ModelDataUrl; empty if there is no stack or no model."""
    return parameter(described, "ModelDataUrl")


def promoted_model(stack: Stack) -> str:
    """The URL of the model in service if make promote or make rollback deployed it; otherwise empty."""
    described = describe(stack)
    url = deployed_model(described)
    if not MODEL_URL.fullmatch(url):
        return ""
    bucket, prefix, _ = split(url)
    history = served(records(stack.client("s3"), bucket, prefix, described["StackId"]), url)
    return url if history[-1:] == [url] else ""


def warn_of_an_older_model(described: dict[str, Any]) -> None:
    """Say so if the deployed model is not the packaged one."""
    deployed, packaged = MODEL_URL.fullmatch(deployed_model(described)), model_archive().parent.name
    if deployed and deployed[3] != packaged:
        console.print(
            f"This is the deployed model {deployed[3]}. The packaged model is {packaged}: make up deploys it, unless "
            f"a model was promoted; then make promote MODEL={packaged} does.",
            style="yellow",
        )


def model_archive() -> Path:
    """The path of the archive that `make package-model` built."""
    try:
        return ROOT / (LOCAL / "package/archive.txt").read_text().strip()
    except OSError:
        raise StackError("There is no packaged model: run make package-model first.") from None


def up(directory: Path = LOCAL / "stack") -> tuple[Stack, dict[str, str]]:
    """Start the stack if necessary and deploy the current template and model; return the stack and its outputs.

    A model that was promoted stays in service. A realtime endpoint, with its shadow model, becomes a serverless one.
    """
    stack = running(directory)
    started = stack is None
    stack = stack or start(directory)
    try:
        with step("Deploying template.yaml with sam deploy"):
            model = upload_model(stack, model_archive())
            promoted = promoted_model(stack)
            before = describe(stack)
            outputs = deploy(
                stack,
                EndpointType="serverless",
                ModelDataUrl=promoted or model,
                # Serverless endpoints support none of these; sam deploy would keep the values of a realtime endpoint.
                DataCaptureUrl="",
                KmsKeyArn="",
                NetworkIsolation="false",
                ShadowModelDataUrl="",
            )
    except BaseException:
        if started:
            stop(stack)
        raise
    write_files(stack, outputs)
    if promoted and promoted != model:
        console.print(
            f"The promoted model {split(promoted)[2]} stays in service. The packaged model is {split(model)[2]}: "
            f"make promote MODEL={split(model)[2]} deploys it.",
            style="yellow",
        )
    if shadow := parameter(before, "ShadowModelDataUrl"):
        name = match[3] if (match := MODEL_URL.fullmatch(shadow)) else shadow
        captured = parameter(before, "DataCaptureUrl")
        console.print(f"The shadow trial of {name} has ended; its captured data stays in {captured}.", style="yellow")
    return stack, outputs


def write_files(stack: Stack, outputs: dict[str, str]) -> None:
    """.local/env, to source, and .local/outputs.json."""
    exports = "".join(f"export {name}={value}\n" for name, value in stack.aws_variables.items())
    (LOCAL / "env").write_text(
        "# source .local/env points aws, sam and boto3 at the local stack. Written by make up.\n"
        "unset $(env | grep -o '^AWS_[A-Za-z0-9_]*')\n"
        f'{exports}export PATH={shlex.quote(str(LOCAL / "bin"))}:"$PATH"  # sam, and python3.13 for sam build\n'
        'case "$(command -v aws > /dev/null && aws --version 2>&1)" in aws-cli/1.*)\n'
        '  echo "aws is version 1, which sends SQS requests to AWS itself: install version 2,'
        ' or add --endpoint-url \\$AWS_ENDPOINT_URL." >&2 ;;\nesac\n'
    )
    OUTPUTS.write_text(json.dumps(outputs, indent=2) + "\n")


def down(directory: Path = LOCAL / "stack") -> bool:
    """Stop the stack; return whether it was running."""
    stack = running(directory)
    if stack:
        stop(stack)
    for path in (LOCAL / "env", OUTPUTS):
        path.unlink(missing_ok=True)
    return stack is not None


def existing() -> tuple[Stack, dict[str, str]] | None:
    """The running local stack and its outputs, if template.yaml is deployed on it."""
    stack = running(LOCAL / "stack")
    if stack and OUTPUTS.exists() and (described := describe(stack)):
        warn_of_an_older_model(described)
        return stack, json.loads(OUTPUTS.read_text())
    return None


@contextlib.contextmanager
def shared() -> Iterator[tuple[Stack, dict[str, str]]]:
    """The local stack and its outputs. Commands share a stack that is up; one that starts it excludes the others."""
    with lock(shared=True):
        if found := existing():
            yield found
            return
    with lock(), deployed() as found:
        yield found


@contextlib.contextmanager
def deployed(redeploy: bool = False) -> Iterator[tuple[Stack, dict[str, str]]]:
    """The running local stack and its outputs, or a new stack that is stopped at the end.

    redeploy: deploy as make up does even if the stack is already running.
    """
    if not redeploy and (found := existing()):
        yield found
        return
    stack = running(LOCAL / "stack")
    if not redeploy:
        console.print(
            "The local stack is running, but nothing is deployed on it."
            if stack
            else "Starting the local stack for this command only (make up keeps it running)."
        )
    try:
        yield up()
    finally:
        if not stack:
            down()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["build", "up", "down"])
    command = parser.parse_args().command
    with report_errors(), lock():
        if command == "build":
            return build()
        if command == "down":
            return console.print("The local stack is stopped." if down() else "The local stack was not running.")
        stack, outputs = up()
        console.print(f"\nThe local stack is up at {stack.url}.\n")
        console.print("  source .local/env            point aws, sam and boto3 at it")
        console.print("  make classify IMAGE=path     classify an image of your own")
        console.print("  make down                    stop it\n")
        limit = stack.client("lambda").get_account_settings()["AccountLimit"]["ConcurrentExecutions"]
        console.print(f"At most {limit} functions run at once; Lambda throttles the rest, and they are retried.")
        console.print(f"To raise the limit: make down && {CONCURRENCY}={2 * limit} make up\n")
        console.print_json(data=outputs)


if __name__ == "__main__":
    main()
