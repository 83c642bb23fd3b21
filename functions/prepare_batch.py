"""PrepareBatch: a batch's input -> the same, complete: validated, with the stack's defaults and the kind of its source.

in   request: {s3_bucket, s3_prefix | s3_key [, format]}; optional threshold, batch_size, max_concurrency,
     tolerated_failure_percentage, review
     defaults: the values of those that have one in the stack's parameters
out  the request with every option, and source: prefix, csv, jsonl or inventory
"""

from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext

from contract import PREPARE_BATCH, InvalidInputError, validator

# By the end of the manifest's name
FORMATS = {
    ".csv": "csv",
    ".csv.gz": "csv",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    "/manifest.json": "inventory",
}

logger = Logger()
validated = validator(PREPARE_BATCH)


def source_of(request: dict[str, Any]) -> str:
    """The kind of the request's source; InvalidInputError if it names none, or two."""
    if ("s3_prefix" in request) == ("s3_key" in request):
        raise InvalidInputError("The input is not valid: name either s3_prefix, or s3_key with a manifest's key")
    if "s3_prefix" in request:
        if "format" in request:
            raise InvalidInputError("The input is not valid: format is for a manifest, which s3_key names")
        return "prefix"
    by_name = [name for ending, name in FORMATS.items() if request["s3_key"].endswith(ending)]
    if not (formats := [request["format"]] if "format" in request else by_name):
        endings = ", ".join(FORMATS)
        raise InvalidInputError(
            f"The input is not valid: s3_key ends in none of {endings}: add format, one of csv, jsonl, inventory"
        )
    return formats[0]


@logger.inject_lambda_context(correlation_id_path="execution_arn")
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    request = validated(event["request"])
    prepared = {"review": False, **event["defaults"], **request, "source": source_of(request)}
    logger.info("batch prepared", **prepared)
    return prepared
