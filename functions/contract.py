"""Each function's input as JSON Schema, and the error for an invalid one."""

import importlib
import json
from collections.abc import Callable
from typing import Any

_UNICODE = {"type": "string", "minLength": 1, "pattern": "^[^\\ud800-\\udfff]*$"}  # not half of a surrogate pair
_OBJECT = {
    "s3_bucket": _UNICODE | {"maxLength": 255},  # an access point's ARN is longer than a name
    "s3_key": _UNICODE | {"maxLength": 1024},
    "s3_version_id": _UNICODE | {"maxLength": 1024},
    "s3_etag": {"type": "string", "minLength": 1, "maxLength": 1024},
    "execution_arn": {"type": "string", "minLength": 1, "maxLength": 2048},
    "threshold": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
}
_IMAGE = {
    "content_type": {"type": "string"},
    "width": {"type": "integer", "minimum": 1},
    "height": {"type": "integer", "minimum": 1},
    "source_bytes": {"type": "integer", "minimum": 1},
    "resized": {"type": "boolean"},
}
_AUDIT_RATE = {"type": "number", "minimum": 0, "maximum": 1}
_PREDICTIONS = {"type": "array"}  # items are checked in predictions.py: an invalid one is the endpoint's fault


def _schema(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required}


_TEXT = {"type": "string"}
_ENDPOINT = _schema({"name": _TEXT, "accept": _TEXT, "labels": _TEXT}, ["name", "accept", "labels"])
_INVOKED_ENDPOINT = _schema({"name": _TEXT, "variant": _TEXT}, ["name", "variant"])

RETRIEVE_IMAGE = _schema(_OBJECT, ["s3_bucket", "s3_key"])
CLASSIFY_IMAGE = _schema(
    _OBJECT
    | {"image": _schema(_IMAGE | {"data": {"type": "string", "minLength": 1}}, [*_IMAGE, "data"])}
    | {"endpoint": _ENDPOINT},
    ["s3_bucket", "s3_key", "image", "endpoint"],
)
CHECK_CONFIDENCE = _schema(
    _OBJECT
    | {"image": _schema(_IMAGE, [*_IMAGE]), "predictions": _PREDICTIONS, "endpoint": _INVOKED_ENDPOINT}
    | {"audit_rate": _AUDIT_RATE},
    ["s3_bucket", "s3_key", "threshold", "image", "predictions", "endpoint"],
)
_COUNT = {"type": "integer", "minimum": 1}
PREPARE_BATCH = {
    **_schema(
        {
            "s3_bucket": _OBJECT["s3_bucket"],
            "s3_prefix": {"type": "string", "maxLength": 1024},
            "s3_key": _OBJECT["s3_key"],
            "format": {"enum": ["csv", "jsonl", "inventory"]},
            "threshold": _OBJECT["threshold"],
            "batch_size": _COUNT | {"maximum": 1000},
            "max_concurrency": _COUNT | {"maximum": 10_000},
            "tolerated_failure_percentage": {"type": "number", "minimum": 0, "maximum": 100},
            "review": {"type": "boolean"},
        },
        ["s3_bucket"],
    ),
    "additionalProperties": False,
}
_RESULTS = _schema({"bucket": _TEXT, "prefix": _TEXT}, ["bucket", "prefix"])
_BATCH_INPUT = _schema(
    {
        "s3_bucket": _OBJECT["s3_bucket"],
        "execution_arn": _OBJECT["execution_arn"],
        "threshold": _OBJECT["threshold"],
        "url_encoded": {"type": "boolean"},
        "endpoint": _ENDPOINT,
        "requests": {"enum": ["jsonlines", "single"]},
        "results": _RESULTS,
        "review_table": _TEXT,  # empty or, from an execution of an earlier version, missing: none are sent to review
        "audit_rate": _AUDIT_RATE,
    },
    [
        "s3_bucket",
        "execution_arn",
        "threshold",
        "url_encoded",
        "endpoint",
        "requests",
        "results",
    ],
)
CLASSIFY_BATCH = _schema(
    {"BatchInput": _BATCH_INPUT, "Items": {"type": "array"}, "batch": _TEXT}, ["BatchInput", "Items", "batch"]
)
_WRITER = _schema({"Bucket": _TEXT, "Key": _TEXT}, ["Bucket", "Key"])
SUMMARISE_BATCH = _schema(
    {
        "execution_arn": _OBJECT["execution_arn"],
        "started": _TEXT,
        "map_run": _schema({"MapRunArn": _TEXT, "ResultWriterDetails": _WRITER}, ["MapRunArn", "ResultWriterDetails"]),
        "results": _schema(
            {"bucket": _TEXT, "prefix": _TEXT, "database": _TEXT, "table": _TEXT},
            ["bucket", "prefix", "database", "table"],
        ),
    },
    ["execution_arn", "started", "map_run", "results"],
)


class InvalidInputError(Exception):
    """The input of a state or an execution does not match its schema."""


def compiled(schema: dict[str, Any]) -> tuple[Callable[[Any], Any], Any]:
    """fastjsonschema's function that validates against the schema, and the exception it raises.

    make build compiles them into the package (tools/compile.py), because importing the compiler takes longer than
    anything else that CheckConfidence does when it starts. A schema that is not in the package is compiled here.
    """
    try:
        package: Any = importlib.import_module("compiled_schemas")
        return package.VALIDATORS[json.dumps(schema)], package.JsonSchemaValueException
    except (ModuleNotFoundError, KeyError):
        import fastjsonschema

        return fastjsonschema.compile(schema, use_default=False), fastjsonschema.JsonSchemaValueException


def validator(schema: dict[str, Any]) -> Callable[[Any], dict[str, Any]]:
    """A function that validates its argument and returns it without the keys that the schema does not define.

    It raises InvalidInputError, which names the invalid field and never quotes a value: the value could be an image.
    """
    validate, violation = compiled(schema)

    def validated(event: Any) -> dict[str, Any]:
        try:
            validate(event)
        except violation as error:
            of_a_field = len(error.path) > 1  # error.message begins with data.<field>, or with data alone
            problem = error.message.replace(*(("data.", "") if of_a_field else ("data", "it")), 1)
            raise InvalidInputError(f"The input is not valid: {problem}") from None
        return {key: event[key] for key in schema["properties"] if key in event}

    return validated
