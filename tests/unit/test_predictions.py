import json

import pytest

from predictions import MAX_PREDICTIONS, EndpointResponseError, check_predictions, parse_predictions, split_labels

CAT_AND_DOG = [{"label": "dog", "probability": 0.9}, {"label": "cat", "probability": 0.1}]


COMMON = [
    {"predictions": [{"label": "cat", "probability": 0.1}, {"label": "dog", "probability": 0.9}]},
    [0.1, 0.9],
    [[0.1, 0.9]],
    {"probabilities": [0.1, 0.9], "labels": ["cat", "dog"], "predicted_label": "dog"},
    {"probabilities": [0.1, 0.9]},
    [{"label": "dog", "score": 0.9}, {"label": "cat", "score": 0.1}],
    {"predictions": [[0.1, 0.9]]},
]


@pytest.mark.parametrize(
    "response",
    COMMON,
    ids=["ours", "built-in", "built-in, nested", "JumpStart verbose", "JumpStart", "Hugging Face", "TensorFlow"],
)
def test_every_common_response_format_gives_the_same_predictions(response):
    assert parse_predictions(json.dumps(response).encode(), ["cat", "dog"]) == CAT_AND_DOG


UNUSABLE = [
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
]


@pytest.mark.parametrize("body", UNUSABLE)
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


ROUNDED = [
    (b"[0.0, 1.0000054]", {"label": "dog", "probability": 1.0}),
    (b"[-0.0000001, 1]", {"label": "dog", "probability": 1.0}),
    (b'[[{"label": "dog", "score": 0.9}, {"label": "cat", "score": 0.1}]]', {"label": "dog", "probability": 0.9}),
    (b'[{"label": "dog, brown", "score": 1}]', {"label": "dog, brown", "probability": 1.0}),
]


@pytest.mark.parametrize(("body", "best"), ROUNDED)
def test_answers_that_are_right_but_for_rounding_or_another_list_are_read(body, best):
    predictions = parse_predictions(body, ["cat", "dog"])
    assert predictions[0] == best
    check_predictions(predictions)


HOSTILE = [
    b"[" * 100_000,
    b'{"predictions": ' * 20_000,
    b"[0.1, 1" + b"0" * 400 + b"]",
    b"[0.1, 1" + b"0" * 10_000 + b"]",
    b'{"probabilities": [], "labels": []}',
    b"[[]]",
    b'[{"label": "\\ud800", "score": 0.9}]',
    b'[{"label": "  ", "score": 0.9}]',
    b"[0.1, 1.01]",
]


@pytest.mark.parametrize("body", HOSTILE, ids=lambda body: body[:30].decode())
def test_hostile_answers_are_named_and_not_quoted_at_length(body):
    with pytest.raises(EndpointResponseError) as caught:
        parse_predictions(body, ["cat", "dog"])
    assert len(str(caught.value)) < 300
    str(caught.value).encode()


def test_a_label_with_a_comma_is_in_double_quotes():
    assert split_labels('cat, "dog, brown",,bird ') == ["cat", "dog, brown", "bird"]
    assert split_labels("") == []
