"""What the template uses and ministack lacks, one module per AWS service. Importing a module installs its overrides."""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any


def override(module: ModuleType, name: str) -> Callable[[Callable[..., Any]], None]:
    """Replace a private function of ministack with the decorated one, which gets the original as its first argument.

    If another version of ministack no longer has that name, the AttributeError stops the emulator's startup.
    """
    original = getattr(module, name)
    return lambda function: setattr(module, name, functools.partial(function, original))
