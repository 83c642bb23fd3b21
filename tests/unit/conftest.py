"""The functions as Lambda imports them: with the template's environment variables, and no access to AWS."""

import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]

# Those of make too, which prints more when make itself runs the tests.
for name in [name for name in os.environ if name.startswith(("AWS_", "MAKE", "MFLAGS"))]:
    del os.environ[name]
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # PyTorch's threads would wait for the cores that other workers use
os.environ.update(
    AWS_DEFAULT_REGION="us-east-1",
    AWS_ACCESS_KEY_ID="test",
    AWS_SECRET_ACCESS_KEY="test",
    AWS_EC2_METADATA_DISABLED="true",
    POWERTOOLS_SERVICE_NAME="image-classification",
    POWERTOOLS_METRICS_NAMESPACE="ImageClassification",
    POWERTOOLS_TRACE_DISABLED="true",
    STATE_MACHINE_ARN="arn:aws:states:us-east-1:123456789012:stateMachine:image-classification-ClassifyImageStateMachine",
    OUTCOME_TABLE="image-classification-OutcomeTable",
    REVIEW_TABLE="image-classification-ReviewTable",
)

SLOWEST = ("test_planted_faults.py", "test_training.py")


def pytest_collection_modifyitems(items):
    """Move the slowest files to the front, so that no worker begins them when the others are done."""
    items.sort(key=lambda item: item.path.name not in SLOWEST)


@pytest.fixture
def context():
    """The attributes of a Lambda context that the Powertools Logger reads."""
    return SimpleNamespace(
        function_name="function",
        memory_limit_in_mb=1024,
        invoked_function_arn="arn:aws:lambda:us-east-1:000000000000:function:function",
        aws_request_id="request",
    )


@pytest.fixture
def event():
    """Load a file of events/ by its name."""
    return lambda name: json.loads((ROOT / "events" / f"{name}.json").read_text())


@pytest.fixture
def log():
    """Collect a function's log lines: call it with the module; it returns the stream."""

    def collect(module):
        stream = io.StringIO()
        module.logger.registered_handler.setStream(stream)
        return stream

    return collect
