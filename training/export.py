"""Export a trained model to ONNX and compare the two; versions of the libraries involved."""

import logging
import os
import platform
import warnings
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read by the import: official builds report to Microsoft

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from data import Dataset
from fit import outputs_of
from model import Probabilities

MAX_DIFFERENCE = 1e-5  # between PyTorch's probabilities and the exported model's


class ExportMismatchError(Exception):
    """The exported model's probabilities differ from the trained model's."""


def export(model: nn.Module, size: tuple[int, ...], path: Path) -> None:
    """Write `model` as ONNX for images of `size` (height, width), without the exporter's traces of this machine."""
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
    proto = program.model_proto  # type: ignore[union-attr]  # None only without dynamo
    for part in [proto, proto.graph, *proto.graph.node, *proto.graph.value_info]:
        del part.metadata_props[:]
    onnx.save_model(proto, path)


def largest_difference(model: Probabilities, path: Path, dataset: Dataset) -> float:
    """Largest absolute difference between a probability in PyTorch and in ONNX Runtime. Raises ExportMismatchError."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (exported,) = session.run(["probabilities"], {"pixels": dataset.images})
    trained = outputs_of(model, dataset).numpy()
    difference = float(np.abs(exported - trained).max())
    if not difference <= MAX_DIFFERENCE:
        raise ExportMismatchError(f"probabilities differ by {difference:.2g}; at most {MAX_DIFFERENCE:g} is accepted")
    return difference


def versions() -> dict[str, str]:
    libraries = {library.__name__: library.__version__ for library in (torch, onnx, onnxruntime, np)}
    return {"python": platform.python_version(), **libraries}
