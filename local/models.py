"""make models [STACK=name] [BUCKET=bucket/prefix]: list the models in the bucket, and which of them is in service.

The bucket and the prefix are those of the model that the stack serves. BUCKET names others and needs no stack: it is on
AWS, or on the local stack after source .local/env.
"""

import argparse
from datetime import UTC, datetime

import boto3
from botocore.client import BaseClient
from botocore.exceptions import BotoCoreError, ClientError
from rich.markup import escape
from rich.table import Table

from local.command import StackError, console, report_errors
from local.registry import PROMOTED, Model, Promotion, list_models, records, service, split
from local.target import Target, target

COLUMNS = ("model", "uploaded (UTC)", "test accuracy", "images", "compared with", "verdict", "promoted (UTC)", "")


def show(s3: BaseClient, bucket: str, prefix: str, found: Target | None = None) -> None:
    """Print the table of models. found: the stack whose promotions and model are shown."""
    models = list_models(s3, bucket, prefix)
    if not models:
        raise StackError(f"There is no model in s3://{bucket}/{prefix}models/: upload one with endpoint/package.py")
    promotions: list[Promotion] = []
    places: dict[str, str] = {}
    if found:
        now = service(found)
        promotions = records(s3, bucket, prefix, now.stack_id)
        places = {found.parameter("ShadowModelDataUrl"): "shadow", now.model_url: "in service"}
    names = {model.sha256: model.hash for model in models if model.sha256}
    table = Table(
        box=None, pad_edge=False, header_style="bold", title=f"s3://{bucket}/{prefix}models/", title_justify="left"
    )
    for column in COLUMNS:
        is_number, is_wide = column in ("test accuracy", "images"), column == "compared with"
        table.add_column(column, justify="right" if is_number else "left", no_wrap=not is_wide)
    for model in models:
        table.add_row(*map(escape, row(model, names, promotions)), places.get(model.url, ""))
    console.print(table)
    for each in promotions:
        if each.result is None:
            console.print(f"The {each.kind} of {split(each.model_url)[2]} at {each.time} is running or was interrupted")


def row(model: Model, names: dict[str, str], promotions: list[Promotion]) -> list[str]:
    """The cells of a model, but for the last. names: the hash of each model.onnx's archive."""
    figures = model.metadata.get("figures", {}).get("test", {})
    tested = sum(model.metadata.get("images", {}).get("test", {}).values())
    accuracy = figures.get("accuracy")
    compared = model.comparison or {"champion": {}}
    champion = compared["champion"].get("model_sha256") or ""
    promoted = [each.time for each in promotions if each.model_url == model.url and each.result == PROMOTED]
    return [
        model.hash,
        minutes(model.uploaded),
        "" if accuracy is None else f"{accuracy:.1%}",
        f"{tested:,}" if tested else "",
        names.get(champion, champion and f"model.onnx {champion[:12]}"),
        str(compared.get("verdict") or ""),
        minutes(datetime.fromisoformat(promoted[-1])) if promoted else "",
    ]


def minutes(at: datetime | None) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M}" if at else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stack", default="", help="name of a stack on AWS; otherwise the local stack")
    parser.add_argument("--bucket", default="", help="bucket or bucket/prefix")
    options = parser.parse_args()
    with report_errors():
        bucket, _, prefix = options.bucket.removeprefix("s3://").strip("/").partition("/")
        prefix = f"{prefix}/" if prefix else ""
        if bucket and not options.stack:
            try:
                return show(boto3.Session().client("s3"), bucket, prefix)
            except (ClientError, BotoCoreError) as error:
                raise StackError(
                    f"BUCKET={options.bucket}: {str(error).rstrip('.')}. Without STACK, it is a bucket on AWS: check "
                    "AWS's credentials and region (aws configure). For the local stack: make up, then source .local/env"
                ) from None
        with target(options.stack, start=False) as found:
            if not bucket:
                bucket, prefix, _ = split(service(found).model_url)
            show(found.client("s3"), bucket, prefix, found)


if __name__ == "__main__":
    main()
