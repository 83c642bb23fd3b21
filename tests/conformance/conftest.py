"""Check each part of local/emulator/ against AWS's documentation of the behaviour that it emulates.

Every test fails on the plain emulator: EMULATOR=plain pytest tests/conformance
"""

from pathlib import Path

import pytest

from emulated import EMULATOR_PYTHON, ROLE, SECONDS_TO_END, WAIT_SCALE, Emulator
from resources import execute, function, machine  # noqa: F401


@pytest.fixture(scope="session")
def emulator(tmp_path_factory):
    if not Path(EMULATOR_PYTHON).exists():
        pytest.skip("needs the emulator: run make up once")
    emulator = Emulator(tmp_path_factory.mktemp("emulator"))
    yield emulator
    emulator.stop()


@pytest.fixture
def client(emulator):
    return emulator.client


@pytest.fixture
def role():
    """The role of the functions and state machines."""
    return ROLE


@pytest.fixture
def wait_scale():
    """The real duration of one second of a retry's delay."""
    return WAIT_SCALE


@pytest.fixture
def seconds_to_end():
    return SECONDS_TO_END
