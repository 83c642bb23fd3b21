"""Write a trained model as ONNX, compare the two, and say with which versions."""

import logging
import os
import platform
import warnings

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # it reports to Microsoft otherwise, once it is imported

import numpy as np
import onnx
import onnxruntime
import torch

from fit import outputs_of

MAX_DIFFERENCE = 1e-5  # between PyTorch's probabilities and the exported model's


class ExportMismatchError(Exception):
    """The exported model does not answer as the trained one does."""


def export(model, size, path):
    """Write a `Probabilities` for pictures of `size` as ONNX, without the exporter's traces of this machine."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (torch.rand(2, 3, *size),),
            input_names=["pixels"],
            output_names=["probabilities"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            dynamo=True,
            verbose=False,
        )
    proto = program.model_proto
    for part in [proto, proto.graph, *proto.graph.node, *proto.graph.value_info]:
        del part.metadata_props[:]
    onnx.save_model(proto, path)


def largest_difference(model, path, dataset):
    """Largest absolute difference of a probability between PyTorch and the ONNX file. Raises ExportMismatchError."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (exported,) = session.run(["probabilities"], {"pixels": dataset.images})
    trained = outputs_of(model, dataset).numpy()
    difference = float(np.abs(exported - trained).max())
    if not difference <= MAX_DIFFERENCE:
        raise ExportMismatchError(f"probabilities differ by {difference:.2g}, more than {MAX_DIFFERENCE:g} is too much")
    return difference


def versions():
    libraries = {library.__name__: library.__version__ for library in (torch, onnx, onnxruntime, np)}
    return {"python": platform.python_version(), **libraries}
