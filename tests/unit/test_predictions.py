import json

import pytest

from predictions import MAX_PREDICTIONS, EndpointResponseError, check_predictions, parse_predictions

CAT_AND_DOG = [{"label": "dog", "probability": 0.9}, {"label": "cat", "probability": 0.1}]


@pytest.mark.parametrize(
    "response",
    [
        {"predictions": [{"label": "cat", "probability": 0.1}, {"label": "dog", "probability": 0.9}]},
        [0.1, 0.9],
        [[0.1, 0.9]],
        {"probabilities": [0.1, 0.9], "labels": ["cat", "dog"], "predicted_label": "dog"},
        {"probabilities": [0.1, 0.9]},
        [{"label": "dog", "score": 0.9}, {"label": "cat", "score": 0.1}],
        {"predictions": [[0.1, 0.9]]},
    ],
    ids=["ours", "built-in", "built-in, nested", "JumpStart verbose", "JumpStart", "Hugging Face", "TensorFlow"],
)
def test_every_common_response_format_gives_the_same_predictions(response):
    assert parse_predictions(json.dumps(response).encode(), ["cat", "dog"]) == CAT_AND_DOG


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>502 Bad Gateway</html>",
        b"\xff\xfe",
        b"null",
        b"{}",
        b"[]",
        b'"cat"',
        b"[NaN, 0.9]",
        b"[0.1, Infinity]",
        b"[-0.1, 0.9]",
        b"[0.1, 1.1]",
        b'["0.1", "0.9"]',
        b"[true, false]",
        b"[null, 0.9]",
        b"[0.1]",
        b"[0.1, 0.2, 0.7]",
        b'{"predictions": []}',
        b'{"predictions": [[0.1, 0.9], [0.2, 0.8]]}',
        b'{"predictions": [{"label": "cat"}]}',
        b'{"predictions": [{"label": "cat", "probability": 0.9}, 7]}',
        b'{"predictions": [{"label": "cat", "probability": 0.9}, {"label": "dog"}]}',
        b'{"predictions": [{"label": null, "probability": 0.9}]}',
        b'{"predictions": [{"label": "", "probability": 0.9}]}',
        b'{"probabilities": [0.9], "labels": ["cat", "dog"]}',
        b'[{"label": "cat", "score": "high"}]',
        b'[{"label": "cat", "score": 0.9}, []]',
    ],
)
def test_any_other_response_is_an_error_and_never_accepted(body):
    with pytest.raises(EndpointResponseError):
        parse_predictions(body, ["cat", "dog"])


def test_bare_probabilities_without_labels_fail_with_the_missing_parameter():
    with pytest.raises(EndpointResponseError, match="parameter Labels"):
        parse_predictions(b"[0.1, 0.9]", [])


def test_only_the_best_of_many_labels_are_kept():
    response = {"probabilities": [i / 1000 for i in range(1000)], "labels": [str(i) for i in range(1000)]}
    predictions = parse_predictions(json.dumps(response).encode(), [])
    assert len(predictions) == MAX_PREDICTIONS
    assert predictions[0] == {"label": "999", "probability": 0.999}


def test_equal_probabilities_keep_the_models_order():
    assert [row["label"] for row in parse_predictions(b"[0.5, 0.5]", ["cat", "dog"])] == ["cat", "dog"]


@pytest.mark.parametrize(
    "predictions",
    [
        [],
        [7],
        [{"label": "cat", "probability": 0.1}, {"label": "dog", "probability": 0.9}],
        [{"label": "cat", "probability": float("nan")}],
        [{"label": "cat", "probability": 2}],
        [{"probability": 0.9}],
    ],
    ids=["none", "no object", "unsorted", "not a number", "out of range", "no label"],
)
def test_invalid_predictions_are_rejected(predictions):
    with pytest.raises(EndpointResponseError):
        check_predictions(predictions)
