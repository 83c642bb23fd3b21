"""What each function takes, as JSON Schema, and the error when it is given something else."""

from collections.abc import Callable
from typing import Any

import fastjsonschema

_OBJECT = {
    "s3_bucket": {"type": "string", "minLength": 1, "maxLength": 63},
    "s3_key": {"type": "string", "minLength": 1, "maxLength": 1024},
    "s3_version_id": {"type": "string", "minLength": 1, "maxLength": 1024},
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
_PREDICTIONS = {"type": "array"}  # their content is checked in predictions.py: a bad one is the endpoint's error


def _schema(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required}


_TEXT = {"type": "string"}
_ENDPOINT_TO_ASK = _schema({"name": _TEXT, "accept": _TEXT, "labels": _TEXT}, ["name", "accept", "labels"])
_ENDPOINT_ASKED = _schema({"name": _TEXT, "variant": _TEXT}, ["name", "variant"])

RETRIEVE_IMAGE = _schema(_OBJECT, ["s3_bucket", "s3_key"])
CLASSIFY_IMAGE = _schema(
    _OBJECT
    | {"image": _schema(_IMAGE | {"data": {"type": "string", "minLength": 1}}, [*_IMAGE, "data"])}
    | {"endpoint": _ENDPOINT_TO_ASK},
    ["s3_bucket", "s3_key", "image", "endpoint"],
)
CHECK_CONFIDENCE = _schema(
    _OBJECT | {"image": _schema(_IMAGE, [*_IMAGE]), "predictions": _PREDICTIONS, "endpoint": _ENDPOINT_ASKED},
    ["s3_bucket", "s3_key", "threshold", "image", "predictions", "endpoint"],
)


class InvalidInputError(Exception):
    """The input of a state or an execution is not what the workflow takes."""


def validator(schema: dict[str, Any]) -> Callable[[Any], dict[str, Any]]:
    """A function that returns its argument without the keys that the schema does not name.

    It raises InvalidInputError that says which field is wrong, and never quotes a value: an image may be among them.
    """
    validate = fastjsonschema.compile(schema, use_default=False)

    def take(event: Any) -> dict[str, Any]:
        try:
            validate(event)
        except fastjsonschema.JsonSchemaValueException as error:
            of_a_field = len(error.path) > 1  # error.message begins with data.<field>, or with data alone
            problem = error.message.replace(*(("data.", "") if of_a_field else ("data", "it")), 1)
            raise InvalidInputError(f"The input is not valid: {problem}") from None
        return {key: event[key] for key in schema["properties"] if key in event}

    return take
