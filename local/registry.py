"""The models in a bucket, which of them a stack serves, and the promotions that put them there.

    PREFIX/models/HASH/model.tar.gz, metadata.json     endpoint/package.py wrote them; HASH is of the archive
    PREFIX/models/HASH/comparison.json                 with this model as the challenger; not every model has one
    PREFIX/promotions/TIME-HASH.json                   what is promoted, why and by whom: written before the update
    PREFIX/promotions/TIME-HASH.result.json            how the update ended

A stack's parameter ModelDataUrl says which bucket and prefix are meant. Records are never overwritten. A command that
was interrupted leaves a record without a result; the next promotion adds it, from what the stack serves then.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore.client import BaseClient
from botocore.exceptions import ClientError, ParamValidationError, WaiterError

from local.command import StackError, console, examples, step

if TYPE_CHECKING:
    from local.target import Target  # which imports local.deployment, which imports this module

MODEL_URL = re.compile(r"s3://([^/]+)/((?:.+/)?)models/([0-9a-f]{16})/model\.tar\.gz")
CAPABILITIES = ["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"]  # for the template's roles, and for SAM's transform
PROMOTED, FAILED = "promoted", "failed"
CONNECTIONS = 10  # the pool size of a boto3 client


@dataclasses.dataclass(frozen=True)
class Model:
    """A model in the bucket. metadata is empty, and comparison None, if the file is missing."""

    url: str
    uploaded: datetime | None  # None if the archive is gone
    metadata: dict[str, Any]
    comparison: dict[str, Any] | None
    comparison_sha256: str | None

    @property
    def hash(self) -> str:
        """Of the archive: the model's name wherever it is shown."""
        return split(self.url)[2]

    @property
    def sha256(self) -> str:
        """Of model.onnx."""
        return str(self.metadata.get("sha256", ""))

    @property
    def labels(self) -> list[str]:
        return list(self.metadata.get("labels", []))


@dataclasses.dataclass(frozen=True)
class Promotion:
    """A record: its JSON has all fields but the last two. result is None if the command was interrupted."""

    time: str
    kind: str  # promotion or rollback
    stack: str
    stack_id: str
    model_url: str
    archive_sha256: str
    model_sha256: str
    previous_url: str
    by: str
    verdict: str | None = None
    margin: float | None = None
    comparison_key: str | None = None
    comparison_sha256: str | None = None
    objections: list[str] = dataclasses.field(default_factory=list)  # that the override set aside
    override: str | None = None
    key: str = ""
    result: str | None = None

    @property
    def document(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("key", "result")}

    @property
    def result_key(self) -> str:
        return self.key.removesuffix(".json") + ".result.json"


@dataclasses.dataclass(frozen=True)
class Service:
    """What a stack serves. Two of them are equal if nothing was deployed in between."""

    stack_id: str
    status: str
    model_url: str
    endpoint_type: str
    parameters: tuple[str, ...]  # their names
    updated: datetime


def split(url: str) -> tuple[str, str, str]:
    """The bucket, the prefix ("" or "PREFIX/") and the hash of a model's URL. Raises StackError."""
    if not (match := MODEL_URL.fullmatch(url)):
        raise StackError(
            f"{url or 'An empty ModelDataUrl'} is not the URL of a model in a registry, "
            "s3://BUCKET/PREFIX/models/HASH/model.tar.gz: upload one with endpoint/package.py --bucket, and deploy it"
        )
    return match[1], match[2], match[3]


def in_service(target: "Target") -> str:
    """The ModelDataUrl that the stack serves. Raises StackError if it creates no endpoint."""
    return service(target).model_url


def service(target: "Target") -> Service:
    """Raises StackError if the stack creates no endpoint."""
    (stack,) = target.client("cloudformation").describe_stacks(StackName=target.name)["Stacks"]
    values = {row["ParameterKey"]: row.get("ParameterValue", "") for row in stack.get("Parameters", [])}
    kind = values.get("EndpointType", "none")
    if kind not in ("serverless", "realtime"):
        raise StackError(
            f"{target.place} has EndpointType {kind}, so it serves no model of its own: "
            "deploy EndpointType serverless or realtime first"
        )
    updated = stack.get("LastUpdatedTime", stack["CreationTime"])
    return Service(stack["StackId"], stack["StackStatus"], values["ModelDataUrl"], kind, tuple(values), updated)


def list_models(s3: BaseClient, bucket: str, prefix: str) -> list[Model]:
    """The models under a prefix ("" for none), the newest first."""
    prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    uploaded = uploads(s3, bucket, prefix)
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        models = list(pool.map(lambda url: read(s3, url, uploaded[url]), uploaded))
    return sorted(models, key=lambda model: str(model.uploaded), reverse=True)


def uploads(s3: BaseClient, bucket: str, prefix: str) -> dict[str, datetime]:
    """When each archive was uploaded, by its URL. Raises StackError."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}models/")
    try:
        rows = [row for page in pages for row in page.get("Contents", [])]
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchBucket":
            raise
        raise StackError(f"There is no bucket {bucket}") from None
    times = {f"s3://{bucket}/{row['Key']}": row["LastModified"] for row in rows}
    return {url: at for url, at in times.items() if (match := MODEL_URL.fullmatch(url)) and match[2] == prefix}


def read(s3: BaseClient, url: str, uploaded: datetime | None) -> Model:
    bucket, prefix, name = split(url)
    folder = f"{prefix}models/{name}"
    metadata, comparison = (fetch(s3, bucket, f"{folder}/{file}.json") for file in ("metadata", "comparison"))
    digest = hashlib.sha256(comparison).hexdigest() if comparison else None
    compared = parsed(comparison) or {}
    is_comparison = all(isinstance(compared.get(name), dict) for name in ("champion", "challenger"))
    return Model(url, uploaded, parsed(metadata) or {}, compared if is_comparison else None, digest)


def fetch(s3: BaseClient, bucket: str, key: str) -> bytes | None:
    """The object's bytes; None if there is no such object."""
    try:
        return s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchKey":
            raise
        return None


def parsed(content: bytes | None) -> dict[str, Any] | None:
    """The JSON object; None if there is none, or another value."""
    try:
        value = json.loads(content or "null")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def find(s3: BaseClient, bucket: str, prefix: str, name: str) -> Model:
    """The model with this URL, or with a hash that starts with this text: of the archive, or else of model.onnx.

    Raises StackError.
    """
    uploaded = uploads(s3, bucket, prefix)
    place = f"s3://{bucket}/{prefix}models/"
    if not uploaded:
        raise StackError(f"There is no model in {place}: upload one with endpoint/package.py --bucket {bucket}")
    found = [url for url in uploaded if name and (url == name or split(url)[2].startswith(name.lower()))]
    if name and not found:
        found = [each.url for each in list_models(s3, bucket, prefix) if each.sha256.startswith(name.lower())]
    if len(found) > 1:
        listed = examples([split(url)[2] for url in found])
        raise StackError(f"MODEL={name} is the start of {len(found)} models: give one of {listed}")
    if not found:
        hashes = [split(url)[2] for url in uploaded]
        given = name.removesuffix("/model.tar.gz").rpartition("/")[2]
        nearest = difflib.get_close_matches(given[:16], hashes, 1)
        meant = f"did you mean MODEL={nearest[0]}? " if nearest else ""
        raise StackError(f"There is no model {name} in {place}: {meant}make models lists all")
    return read(s3, found[0], uploaded[found[0]])


def download(s3: BaseClient, url: str, file: Path) -> Path:
    """Download an archive, in a registry or elsewhere. Returns the file. Raises StackError."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    try:
        s3.download_file(bucket, key, str(file))
    except (ClientError, ParamValidationError) as error:
        raise StackError(f"{url} cannot be downloaded: {error}") from None
    return file


def promote(target: "Target", model: str, override: str = "") -> Promotion:
    """Deploy a model of the bucket, given by its URL or the start of its hash. Raises StackError.

    override: the reason for promoting it in spite of objections().
    """
    before = idle(target)
    bucket, prefix, _ = split(before.model_url)
    s3 = target.client("s3")
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
    return deploy(target, before, chosen, "promotion", **why)


def rollback(target: "Target") -> Promotion:
    """Deploy the model that was in service before the present one. Raises StackError."""
    before = idle(target)
    bucket, prefix, name = split(before.model_url)
    s3 = target.client("s3")
    history = served(records(s3, bucket, prefix, before.stack_id), before.model_url)
    if history[-1:] != [before.model_url]:
        raise StackError(
            f"{name} is in service on {target.place} without a record of its promotion, so that the model before it is "
            'unknown: make models lists all, make promote MODEL=hash OVERRIDE="reason" deploys one'
        )
    if len(history) < 2:
        raise StackError(f"{name} is the first model of the records of {target.place}: there is none to return to")
    earlier = read(s3, history[-2], uploads(s3, *split(history[-2])[:2]).get(history[-2]))
    if not earlier.uploaded:
        raise StackError(f"{earlier.url} is gone: package that model again and upload it, or promote another one")
    return deploy(target, before, earlier, "rollback")


def idle(target: "Target") -> Service:
    """The stack. Raises StackError if it is being updated."""
    found = service(target)
    if found.status.endswith("_IN_PROGRESS"):
        raise StackError(f"{target.place} is being updated ({found.status}): wait until that has ended")
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


def deploy(target: "Target", before: Service, model: Model, kind: str, **why: Any) -> Promotion:
    """Record the intention, update the stack, wait for it, and record the result. Raises StackError."""
    s3 = target.client("s3")
    bucket, prefix, name = split(model.url)
    now = datetime.now(UTC)
    record = Promotion(
        time=now.isoformat(timespec="seconds"),
        kind=kind,
        stack=target.name,
        stack_id=before.stack_id,
        model_url=model.url,
        archive_sha256=archive_sha256(s3, model),
        model_sha256=model.sha256,
        previous_url=before.model_url,
        by=target.client("sts").get_caller_identity()["Arn"],
        key=f"{prefix}promotions/{now:%Y%m%dT%H%M%S.%f}Z-{name}.json",
        **why,
    )
    interrupted = [each for each in records(s3, bucket, prefix, before.stack_id) if each.result is None]
    if service(target) != before:
        raise StackError("The stack was updated in the meantime: make models shows what it serves now. Then try again")
    put(s3, bucket, record.key, record.document)
    try:
        with step(f"Deploying {name}"):
            update(target, before, model.url, f"{now:%Y%m%dT%H%M%S%f}-{name}")
            for each in interrupted:  # no other update is running, so it has ended, or has never begun
                took_effect = each.model_url == before.model_url
                close(s3, bucket, each, PROMOTED if took_effect else FAILED, "The command was interrupted")
            wait(target)
            verify(target, model.url)
    except StackError as error:
        close(s3, bucket, record, FAILED, str(error))
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "An update that has begun goes on in CloudFormation: make models shows what is in service."
        ) from None
    close(s3, bucket, record, PROMOTED, None)
    if kind == "promotion":
        register(target, model, record)
    return dataclasses.replace(record, result=PROMOTED)


def update(target: "Target", before: Service, url: str, token: str) -> None:
    """Start the update of one parameter: the template, and with it the functions' code, stays. Raises StackError.

    token: makes a request that is sent again the same one.
    """
    kept = [{"ParameterKey": name, "UsePreviousValue": True} for name in before.parameters if name != "ModelDataUrl"]
    try:
        target.client("cloudformation").update_stack(
            StackName=before.stack_id,
            UsePreviousTemplate=True,
            Parameters=[*kept, {"ParameterKey": "ModelDataUrl", "ParameterValue": url}],
            Capabilities=CAPABILITIES,
            ClientRequestToken=token,
        )
    except ClientError as error:
        raise StackError(f"CloudFormation refused the update: {error.response['Error']['Message']}") from None


def wait(target: "Target") -> None:
    """Print what happens to the endpoint until the update has ended. Raises StackError if it was rolled back."""
    cloudformation = target.client("cloudformation")
    shown = 0
    while True:
        (stack,) = cloudformation.describe_stacks(StackName=target.name)["Stacks"]
        events = update_events(cloudformation, target.name)
        for event in events[shown:]:
            if event["ResourceType"].startswith("AWS::SageMaker::") or event["ResourceStatus"].endswith("_FAILED"):
                console.print(f"  {event['LogicalResourceId']}: {event['ResourceStatus']}", markup=False)
        shown = len(events)
        if not stack["StackStatus"].endswith("_IN_PROGRESS"):
            break
        time.sleep(0.5 if target.local else 5)
    if stack["StackStatus"] != "UPDATE_COMPLETE":
        failed = [event for event in events if event["ResourceStatus"].endswith("_FAILED")]
        first = failed[0] if failed else {"LogicalResourceId": target.name}
        reason = first.get("ResourceStatusReason", stack.get("StackStatusReason", "no reason given"))
        raise StackError(
            f"The update failed, and CloudFormation rolled it back ({stack['StackStatus']}). "
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


def verify(target: "Target", url: str) -> None:
    """Raises StackError unless the endpoint is in service with this model."""
    name = target.outputs["EndpointName"]
    try:
        waiter = target.client("sagemaker").get_waiter("endpoint_in_service")
        waiter.wait(EndpointName=name, WaiterConfig={"Delay": 1 if target.local else 10, "MaxAttempts": 60})
    except WaiterError as error:
        raise StackError(f"The endpoint {name} is not in service: {error}") from None
    found = {in_service(target), primary_container(target)["ModelDataUrl"]}
    if found != {url}:
        raise StackError(f"Another update has replaced the model: {' and '.join(sorted(found - {url}))} is in service")


def primary_container(target: "Target") -> dict[str, Any]:
    """The container of the model that the endpoint serves."""
    sagemaker = target.client("sagemaker")
    config = sagemaker.describe_endpoint(EndpointName=target.outputs["EndpointName"])["EndpointConfigName"]
    (variant,) = sagemaker.describe_endpoint_config(EndpointConfigName=config)["ProductionVariants"]
    return sagemaker.describe_model(ModelName=variant["ModelName"])["PrimaryContainer"]


def register(target: "Target", model: Model, record: Promotion) -> None:
    """Add the model to the stack's model package group, if it has one; the local stack's group has no packages."""
    group = target.parameter("ModelPackageGroupName")
    if not group or target.local:
        return
    try:
        container = primary_container(target)
        target.client("sagemaker").create_model_package(**package_request(group, container, model, record))
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


def records(s3: BaseClient, bucket: str, prefix: str, stack_id: str) -> list[Promotion]:
    """The promotions and rollbacks of a stack, oldest first."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}promotions/")
    keys = sorted(row["Key"] for page in pages for row in page.get("Contents", []))
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        contents = dict(zip(keys, pool.map(lambda key: parsed(fetch(s3, bucket, key)), keys), strict=True))
    fields = {field.name for field in dataclasses.fields(Promotion)}
    found = []
    for key, content in contents.items():
        if content and content.get("stack_id") == stack_id:
            known = {name: value for name, value in content.items() if name in fields}
            record = Promotion(**known, key=key)
            result = contents.get(record.result_key)
            found.append(dataclasses.replace(record, result=result["result"] if result else None))
    return found


def served(promotions: list[Promotion], in_service: str) -> list[str]:
    """The URLs of the models that can be returned to, in order; the last one should be in service.

    A promotion that was interrupted counts if its model is in service.
    """
    urls: list[str] = []
    for each in promotions:
        if each.result != PROMOTED and not (each.result is None and each.model_url == in_service):
            continue
        if urls[-1:] != [each.previous_url]:  # deployed without a record
            urls.append(each.previous_url)
        if each.kind == "rollback":
            urls.pop()
        if urls[-1:] != [each.model_url]:
            urls.append(each.model_url)
    return urls


def close(s3: BaseClient, bucket: str, record: Promotion, result: str, reason: str | None) -> None:
    """Write the result, unless somebody else has."""
    ended = datetime.now(UTC).isoformat(timespec="seconds")
    with contextlib.suppress(StackError):
        put(s3, bucket, record.result_key, {"time": ended, "result": result, "reason": reason})


def put(s3: BaseClient, bucket: str, key: str, content: dict[str, Any]) -> None:
    """Write a record. Raises StackError if there is one already."""
    body = json.dumps(content, indent=2).encode() + b"\n"
    try:
        s3.put_object(Bucket=bucket, Key=key, Body=body, ContentType="application/json", IfNoneMatch="*")
    except ClientError as error:
        if error.response["Error"]["Code"] != "PreconditionFailed":
            raise
        raise StackError(f"s3://{bucket}/{key} exists already") from None
