"""A TorchServe handler for the model's four functions; inference.py is in the same archive."""

from typing import Any

import inference

model: inference.Model | None = None


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[str] | None:
    global model
    if model is None:
        model = inference.model_fn(context.system_properties["model_dir"])
    if data is None:
        return None
    contents = []
    for index, each in enumerate(data):
        headers = {name.lower(): value for name, value in context.get_all_request_header(index).items()}
        predictions = inference.predict_fn(inference.input_fn(each["body"], headers["content-type"]), model)
        content, response_type = inference.output_fn(predictions, "*/*")
        context.set_response_content_type(index, response_type)
        contents.append(content)
    return contents
