"""What must hold for any input: a result that is valid, or an error with a name."""

import contextlib
import io
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from PIL import Image

import contract
import pixels
import predictions
import retrieve_image
from inference import preprocess

SIZE = (16, 16)
QUICK = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
JSON = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=8),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=4), inner, max_size=4),
)
ROWS = some.lists(some.fixed_dictionaries({"label": JSON, "probability": JSON}), min_size=1, max_size=4)
PROBABILITIES = some.lists(some.floats() | some.integers(), max_size=4)
ANSWERS = JSON | PROBABILITIES | some.fixed_dictionaries({"predictions": ROWS | some.lists(PROBABILITIES, max_size=2)})


def seed(image_format):
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((24, 18)).convert("RGB").save(buffer, image_format)
    return buffer.getvalue()


SEEDS = {image_format: seed(image_format) for image_format in pixels.FORMATS}


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize("image_format", pixels.FORMATS)
@QUICK
@given(changes=some.lists(some.tuples(some.floats(0, 1), some.binary(max_size=4)), max_size=6), end=some.floats(0.1, 1))
def test_any_damage_gives_the_same_outcome_on_both_hosts(image_format, changes, end):
    data = bytearray(SEEDS[image_format])
    for place, content in changes:
        start = int(place * len(data))
        data[start : start + len(content)] = content
    if end > 0.3:
        data = data[: int(end * 1.4 * len(data))]
    data = bytes(data)
    outcomes = []
    for convert in (lambda: retrieve_image.fit(data, "s3://b/k"), lambda: preprocess(data, SIZE)):
        try:
            convert()
            outcomes.append(None)
        except pixels.UnsupportedImageError as error:
            outcomes.append(str(error).replace("s3://b/k: ", ""))
    assert outcomes[0] == outcomes[1]


@QUICK
@given(answer=ANSWERS)
def test_any_answer_is_valid_predictions_or_an_error_of_the_endpoint(answer):
    with contextlib.suppress(predictions.EndpointResponseError):
        parsed = predictions.parse_predictions(json.dumps(answer).encode(), ["cat", "dog"])
        predictions.check_predictions(parsed)
        json.dumps(parsed, ensure_ascii=False).encode()
        assert all(0 <= row["probability"] <= 1 for row in parsed)


@QUICK
@given(data=some.binary(max_size=200))
def test_any_bytes_are_no_image_with_a_sentence_or_an_image(data):
    with contextlib.suppress(pixels.UnsupportedImageError):
        assert np.isfinite(preprocess(data, SIZE)).all()


@QUICK
@given(event=JSON | some.fixed_dictionaries({"s3_bucket": JSON, "s3_key": JSON, "threshold": JSON}))
def test_any_input_of_an_execution_is_valid_or_named(event):
    with contextlib.suppress(contract.InvalidInputError):
        assert set(contract.validator(contract.RETRIEVE_IMAGE)(event)) <= set(contract.RETRIEVE_IMAGE["properties"])
