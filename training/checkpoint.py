"""The state of a training in a folder, so that one that was interrupted continues.

SageMaker copies a job's /opt/ml/checkpoints to S3 while it runs, and back when it starts a spot instance again.
"""

import hashlib
import os
import pickle
import re
import time
from pathlib import Path
from typing import Any

import torch

SHARE = 0.01  # of the time is at most spent on writing


class Checkpoint:
    """Named states (tensors, numbers, text, and lists and dicts of them) of the training that `key` identifies.

    Without a folder, nothing is kept. States of another training are ignored and replaced.
    """

    def __init__(self, folder: Path | None = None, key: str = "") -> None:
        self.folder, self.key = folder, key
        self.next = -float("inf")  # the time from which writing again takes at most SHARE of the time

    def save(self, name: str, state: dict[str, Any], always: bool = True) -> None:
        """Replace the state in one step, so that a kill at any time leaves a whole one.

        always: otherwise it is left out if the last one was written a short time ago.
        """
        started = time.monotonic()
        if not self.folder or not (always or started >= self.next):
            return
        part = self.folder / f"{name}.part"
        with open(part, "wb") as file:
            torch.save({"key": self.key, "state": state}, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.folder / f"{name}.pt")
        now = time.monotonic()
        self.next = now + (now - started) / SHARE

    def load(self, name: str) -> dict[str, Any] | None:
        """The state; None, with a message if there is a file, if it is another training's or cannot be read.

        PyTorch reads it without running code from it (weights_only).
        """
        if not self.folder or not (path := self.folder / f"{name}.pt").exists():
            return None
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            if saved["key"] == self.key:
                return saved["state"]
            problem = "of other options, data or code"
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError):
            problem = "not a checkpoint that PyTorch can load without running code"
        print(f"Ignoring {path}: it is {problem}", flush=True)
        return None

    def clear(self) -> None:
        """Remove the states after the training: the next one with the same options starts at the beginning."""
        for path in self.folder.glob("*.pt") if self.folder else []:
            if re.fullmatch(r"plan|patches|network-\d+", path.stem):  # the folder can have other files
                path.unlink()


def key_of(parts: list[Any]) -> str:
    """A hash of arrays, text and numbers, and of the code of the training."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    for part in [torch.__version__, *parts]:
        digest.update(part.tobytes() if hasattr(part, "tobytes") else repr(part).encode())
    return digest.hexdigest()
