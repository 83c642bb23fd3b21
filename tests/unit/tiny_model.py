"""A model with predictable output: P(light) is the image's mean brightness, P(dark) is 1 - P(light)."""

import json

import onnx
from onnx import TensorProto, helper

LABELS = ["dark", "light"]


def write_tiny_model(folder, size=(4, 6)):
    """Write model.onnx and metadata.json for images of `size` (height, width)."""
    height, width = size
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
            helper.make_node("Unsqueeze", ["mean", "last"], ["light"]),
            helper.make_node("Sub", ["one", "light"], ["dark"]),
            helper.make_node("Concat", ["dark", "light"], ["probabilities"], axis=1),
        ],
        "tiny",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, height, width])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 2])],
        [
            helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3]),
            helper.make_tensor("last", TensorProto.INT64, [1], [1]),
            helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save_model(model, folder / "model.onnx")
    metadata = {"labels": LABELS, "input": {"name": "pixels", "height": height, "width": width, "range": [0, 1]}}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    return folder
