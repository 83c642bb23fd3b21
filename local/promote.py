"""make promote MODEL=hash [OVERRIDE="reason" STACK=name], make rollback [STACK=name]: change the model in service."""

import argparse
import dataclasses
import hashlib
import re
import time
from datetime import UTC, datetime
from typing import Any

from botocore.client import BaseClient
from botocore.exceptions import ClientError, WaiterError

from local.command import StackError, UsageError, console, examples, report_errors, step
from local.registry import (
    FAILED,
    PROMOTED,
    Model,
    Promotion,
    Service,
    close,
    find,
    in_service,
    put,
    read,
    records,
    served,
    service,
    split,
    uploads,
)
from local.target import Target, target

CAPABILITIES = ["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"]  # for the template's roles, and for SAM's transform


def promote(stack: Target, model: str, override: str = "") -> Promotion:
    """Deploy a model of the bucket, given by its URL or the start of its hash. Raises StackError.

    override: the reason for promoting it in spite of objections().
    """
    before = idle(stack)
    bucket, prefix, _ = split(before.model_url)
    s3 = stack.client("s3")
    chosen = find(s3, bucket, prefix, model)
    check_archive(chosen)
    if chosen.url == before.model_url:
        raise StackError(f"{chosen.hash} is in service already")
    champion = read(s3, before.model_url, None)
    found = objections(chosen, champion)
    if found and not override.strip():
        raise StackError(
            f"{chosen.hash} is not promoted: {'; '.join(found)}. To promote it all the same: "
            f'make promote MODEL={chosen.hash} OVERRIDE="reason"'
        )
    if new := sorted(set(chosen.labels) - set(champion.labels)):
        console.print(f"Labels that {champion.hash} does not know: {examples(new)}", markup=False)
    compared = chosen.comparison or {}
    why = {
        "verdict": compared.get("verdict"),
        "margin": compared.get("margin"),
        "comparison_key": f"{prefix}models/{chosen.hash}/comparison.json" if chosen.comparison else None,
        "comparison_sha256": chosen.comparison_sha256,
        "objections": found,
        "override": override.strip() if found else None,
    }
    return deploy(stack, before, chosen, "promotion", **why)


def rollback(stack: Target) -> Promotion:
    """Deploy the model that was in service before the present one. Raises StackError."""
    before = idle(stack)
    bucket, prefix, name = split(before.model_url)
    s3 = stack.client("s3")
    history = served(records(s3, bucket, prefix, before.stack_id), before.model_url)
    if history[-1:] != [before.model_url]:
        raise StackError(
            f"{name} is in service on {stack.place} without a record of its promotion, so that the model before it is "
            'unknown: make models lists all, make promote MODEL=hash OVERRIDE="reason" deploys one'
        )
    if len(history) < 2:
        raise StackError(f"{name} is the first model of the records of {stack.place}: there is none to return to")
    earlier = read(s3, history[-2], uploads(s3, *split(history[-2])[:2]).get(history[-2]))
    if not earlier.uploaded:
        raise StackError(f"{earlier.url} is gone: package that model again and upload it, or promote another one")
    return deploy(stack, before, earlier, "rollback")


def idle(stack: Target) -> Service:
    """The stack. Raises StackError if it is being updated."""
    found = service(stack)
    if found.status.endswith("_IN_PROGRESS"):
        raise StackError(f"{stack.place} is being updated ({found.status}): wait until that has ended")
    return found


def check_archive(model: Model) -> None:
    """Raises StackError if the comparison is of another archive; one of the model's folder names none."""
    compared = str((model.comparison or {}).get("challenger", {}).get("archive_sha256", model.hash))
    if not compared.startswith(model.hash):
        raise StackError(
            f"{model.url} is not the archive that was compared, {compared[:16]}: download this one and compare it, or "
            "compare the model's folder"
        )


def objections(model: Model, champion: Model) -> list[str]:
    """What speaks against promoting a model, with what to do; an override sets it aside."""
    found = []
    compared = model.comparison
    again = "compare it with the model in service, training/compare.py, and package it with --comparison"
    if compared is None:
        found.append(f"it has no comparison.json ({again})")
    else:
        sha256 = {name: str(compared.get(name, {}).get("model_sha256", "")) for name in ("champion", "challenger")}
        if model.sha256 and sha256["challenger"] != model.sha256:
            found.append(
                f"its comparison.json is about another challenger, model.onnx {sha256['challenger'][:12]} ({again})"
            )
        if compared.get("holds") is not True:
            found.append(f"the requirements of its comparison do not hold, which says: {compared.get('verdict')}")
        if not champion.sha256 or sha256["champion"] != champion.sha256:
            found.append(
                f"it was compared with a champion whose model.onnx is {sha256['champion'][:12]}, but that of the model "
                f"in service, {champion.hash}, is {champion.sha256[:12] or 'unknown'} ({again})"
            )
    if lost := sorted(set(champion.labels) - set(model.labels)):
        found.append(f"it does not know labels of the model in service: {examples(lost)}")
    return found


def archive_sha256(s3: BaseClient, model: Model) -> str:
    """The hash of the archive in the bucket. Raises StackError if it is not the one in its name."""
    bucket, prefix, name = split(model.url)
    digest = hashlib.sha256()
    with step(f"Checking {name}"):
        body = s3.get_object(Bucket=bucket, Key=f"{prefix}models/{name}/model.tar.gz")["Body"]
        for chunk in body.iter_chunks(1 << 20):
            digest.update(chunk)
    found = digest.hexdigest()
    if not found.startswith(name):
        raise StackError(f"{model.url} is not what was packaged: package that model again and upload it")
    return found


def deploy(stack: Target, before: Service, model: Model, kind: str, **why: Any) -> Promotion:
    """Record the intention, update the stack, wait for it, and record the result. Raises StackError."""
    s3 = stack.client("s3")
    bucket, prefix, name = split(model.url)
    now = datetime.now(UTC)
    record = Promotion(
        time=now.isoformat(timespec="seconds"),
        kind=kind,
        stack=stack.name,
        stack_id=before.stack_id,
        model_url=model.url,
        archive_sha256=archive_sha256(s3, model),
        model_sha256=model.sha256,
        previous_url=before.model_url,
        by=stack.client("sts").get_caller_identity()["Arn"],
        key=f"{prefix}promotions/{now:%Y%m%dT%H%M%S.%f}Z-{name}.json",
        **why,
    )
    interrupted = [each for each in records(s3, bucket, prefix, before.stack_id) if each.result is None]
    if service(stack) != before:
        raise StackError("The stack was updated in the meantime: make models shows what it serves now. Then try again")
    put(s3, bucket, record.key, record.document)
    try:
        with step(f"Deploying {name}"):
            update(stack, before, model.url, f"{now:%Y%m%dT%H%M%S%f}-{name}")
            for each in interrupted:  # no other update is running, so it has ended, or has never begun
                took_effect = each.model_url == before.model_url
                close(s3, bucket, each, PROMOTED if took_effect else FAILED, "The command was interrupted")
            wait(stack)
            verify(stack, model.url)
    except StackError as error:
        close(s3, bucket, record, FAILED, str(error))
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "An update that has begun goes on in CloudFormation: make models shows what is in service."
        ) from None
    close(s3, bucket, record, PROMOTED, None)
    if kind == "promotion":
        register(stack, model, record)
    return dataclasses.replace(record, result=PROMOTED)


def update(stack: Target, before: Service, url: str, token: str) -> None:
    """Start the update of one parameter: the template, and with it the functions' code, stays. Raises StackError.

    token: makes a request that is sent again the same one.
    """
    kept = [{"ParameterKey": name, "UsePreviousValue": True} for name in before.parameters if name != "ModelDataUrl"]
    try:
        stack.client("cloudformation").update_stack(
            StackName=before.stack_id,
            UsePreviousTemplate=True,
            Parameters=[*kept, {"ParameterKey": "ModelDataUrl", "ParameterValue": url}],
            Capabilities=CAPABILITIES,
            ClientRequestToken=token,
        )
    except ClientError as error:
        raise StackError(f"CloudFormation refused the update: {error.response['Error']['Message']}") from None


def wait(stack: Target) -> None:
    """Print what happens to the endpoint until the update has ended. Raises StackError if it was rolled back."""
    cloudformation = stack.client("cloudformation")
    shown = 0
    while True:
        (described,) = cloudformation.describe_stacks(StackName=stack.name)["Stacks"]
        events = update_events(cloudformation, stack.name)
        for event in events[shown:]:
            if event["ResourceType"].startswith("AWS::SageMaker::") or event["ResourceStatus"].endswith("_FAILED"):
                console.print(f"  {event['LogicalResourceId']}: {event['ResourceStatus']}", markup=False)
        shown = len(events)
        if not described["StackStatus"].endswith("_IN_PROGRESS"):
            break
        time.sleep(0.5 if stack.local else 5)
    if described["StackStatus"] != "UPDATE_COMPLETE":
        failed = [event for event in events if event["ResourceStatus"].endswith("_FAILED")]
        first = failed[0] if failed else {"LogicalResourceId": stack.name}
        reason = first.get("ResourceStatusReason", described.get("StackStatusReason", "no reason given"))
        raise StackError(
            f"The update failed, and CloudFormation rolled it back ({described['StackStatus']}). "
            f"{first['LogicalResourceId']}: {reason}"
        )


def update_events(cloudformation: BaseClient, name: str) -> list[dict[str, Any]]:
    """The events of the stack's latest update, oldest first."""
    events: list[dict[str, Any]] = []
    for page in cloudformation.get_paginator("describe_stack_events").paginate(StackName=name):
        for event in page["StackEvents"]:  # the newest first
            events.insert(0, event)
            of_stack = event["PhysicalResourceId"] == event["StackId"]
            if of_stack and event["ResourceStatus"] == "UPDATE_IN_PROGRESS":
                return events
    return events


def verify(stack: Target, url: str) -> None:
    """Raises StackError unless the endpoint is in service with this model."""
    name = stack.outputs["EndpointName"]
    try:
        waiter = stack.client("sagemaker").get_waiter("endpoint_in_service")
        waiter.wait(EndpointName=name, WaiterConfig={"Delay": 1 if stack.local else 10, "MaxAttempts": 60})
    except WaiterError as error:
        raise StackError(f"The endpoint {name} is not in service: {error}") from None
    found = {in_service(stack), primary_container(stack)["ModelDataUrl"]}
    if found != {url}:
        raise StackError(f"Another update has replaced the model: {' and '.join(sorted(found - {url}))} is in service")


def primary_container(stack: Target) -> dict[str, Any]:
    """The container of the model that the endpoint serves."""
    sagemaker = stack.client("sagemaker")
    config = sagemaker.describe_endpoint(EndpointName=stack.outputs["EndpointName"])["EndpointConfigName"]
    (variant,) = sagemaker.describe_endpoint_config(EndpointConfigName=config)["ProductionVariants"]
    return sagemaker.describe_model(ModelName=variant["ModelName"])["PrimaryContainer"]


def register(stack: Target, model: Model, record: Promotion) -> None:
    """Add the model to the stack's model package group, if it has one; the local stack's group has no packages."""
    group = stack.parameter("ModelPackageGroupName")
    if not group or stack.local:
        return
    try:
        container = primary_container(stack)
        stack.client("sagemaker").create_model_package(**package_request(group, container, model, record))
    except ClientError as error:
        console.print(f"The model is in service, but not in the group {group}: {error}", markup=False)


def package_request(group: str, container: dict[str, Any], model: Model, record: Promotion) -> dict[str, Any]:
    """https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateModelPackage.html"""
    lineage = model.metadata.get("lineage", {})
    about = {
        **{name: value for name, value in record.document.items() if name != "objections"},
        "record": record.key,
        **{f"{part}_data_sha256": value for part, value in lineage.get("data", {}).items()},
        **{name: lineage.get(name) for name in ("manifest_sha256", "parent")},
        "commit": lineage.get("code", {}).get("commit"),
    }
    # At most 256 letters, digits, spaces and _.:/=+-@
    values = {
        name: re.sub(r"[^\w.:/=+@-]", " ", str(value))[:256] for name, value in about.items() if value is not None
    }
    return {
        "ModelPackageGroupName": group,
        "InferenceSpecification": {
            "Containers": [{name: container[name] for name in ("Image", "ModelDataUrl", "Environment")}]
        },
        "ModelApprovalStatus": "Approved",
        "CustomerMetadataProperties": {name: value for name, value in values.items() if value},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="the start of its hash, or its s3:// URL: make models lists them")
    parser.add_argument("--override", default="", help="why to promote it in spite of its comparison; recorded")
    parser.add_argument("--rollback", action="store_true", help="return to the model that was in service before")
    parser.add_argument("--stack", default="", help="name of a stack on AWS; otherwise the local stack")
    options = parser.parse_args()
    with report_errors():
        if not options.rollback and not options.model:
            raise UsageError("MODEL is missing: give MODEL=hash; make models lists them")
        with target(options.stack, start=False) as found:
            done = rollback(found) if options.rollback else promote(found, options.model, options.override)
            name, before = split(done.model_url)[2], split(done.previous_url)[2]
            console.print(f"{name} is in service on {found.place}, in place of {before}.")
            if done.override:
                console.print(f"Overridden: {'; '.join(done.objections)}", markup=False, soft_wrap=True)
            console.print(f"Recorded as s3://{split(done.model_url)[0]}/{done.key}", markup=False, soft_wrap=True)
            if not options.rollback:
                console.print(
                    f"To return to {before}: make rollback{f' STACK={options.stack}' if options.stack else ''}"
                )


if __name__ == "__main__":
    main()
