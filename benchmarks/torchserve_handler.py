"""TorchServe's handler around the model's four functions, which lie in the archive beside it."""

import inference

model = None


def handle(data, context):
    global model
    if model is None:
        model = inference.model_fn(context.system_properties["model_dir"])
    if data is None:
        return None
    answers = []
    for index, each in enumerate(data):
        headers = {name.lower(): value for name, value in context.get_all_request_header(index).items()}
        predictions = inference.predict_fn(inference.input_fn(each["body"], headers["content-type"]), model)
        content, answer_type = inference.output_fn(predictions, "*/*")
        context.set_response_content_type(index, answer_type)
        answers.append(content)
    return answers
