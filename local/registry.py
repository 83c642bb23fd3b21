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
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore.client import BaseClient
from botocore.exceptions import ClientError, ParamValidationError

from local.command import StackError, examples

if TYPE_CHECKING:
    from local.target import Target  # which imports local.deployment, which imports this module

MODEL_URL = re.compile(r"s3://([^/]+)/((?:.+/)?)models/([0-9a-f]{16})/model\.tar\.gz")
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
    """The model with this URL, or with a hash that starts with this text: of the archive, or of model.onnx.

    An archive's whole hash does too, as in comparisons and records. Raises StackError.
    """
    uploaded = uploads(s3, bucket, prefix)
    place = f"s3://{bucket}/{prefix}models/"
    if not uploaded:
        raise StackError(f"There is no model in {place}: upload one with endpoint/package.py --bucket {bucket}")
    if re.fullmatch("(?i)[0-9a-f]{1,3}", name):
        raise StackError(f"MODEL={name} is too short: give at least 4 digits of a hash")
    found = [url for url in uploaded if name and (url == name or split(url)[2].startswith(name[:16].lower()))]
    if name and not (found and len(name) >= 16):
        models = [each for each in list_models(s3, bucket, prefix) if each.sha256.startswith(name.lower())]
        if not found and len(models) > 1 and len({each.sha256 for each in models}) == 1:
            raise StackError(
                f"model.onnx {models[0].sha256[:12]} is in {len(models)} archives (packaged again?): "
                f"give the start of one of {examples([each.hash for each in models])}"
            )
        found += [each.url for each in models if each.url not in found]
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
