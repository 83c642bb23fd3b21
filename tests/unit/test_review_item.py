import json
import random
import re
from datetime import datetime

import pytest

import review_item
from review_item import MAX_PREDICTIONS, is_drawn, item_for

RESULT = {
    "s3_bucket": "images",
    "s3_key": "uploads/seven.png",
    "s3_version_id": "v1",
    "execution_arn": "arn:aws:states:us-east-1:123456789012:execution:machine:name",
    "image": {"content_type": "image/png", "width": 8, "height": 8, "source_bytes": 129, "resized": False},
    "predictions": [{"label": "7", "probability": 0.5}, {"label": "1", "probability": 0.3}],
    "endpoint": {"name": "image-classification", "variant": "AllTraffic"},
    "label": "7",
    "confidence": 0.5,
    "threshold": 0.75,
    "accepted": False,
}


def test_an_image_below_the_threshold_is_reviewed_whatever_the_audit_rate():
    item = item_for(RESULT, audit_rate=0)
    assert datetime.fromisoformat(item.pop("created_at")["S"]).tzinfo
    assert json.loads(item.pop("predictions")["S"]) == RESULT["predictions"]
    assert json.loads(item.pop("endpoint")["S"]) == RESULT["endpoint"]
    assert item == {
        "image": {"S": "s3://images/uploads/seven.png"},
        "version": {"S": "v1"},
        "s3_bucket": {"S": "images"},
        "s3_key": {"S": "uploads/seven.png"},
        "s3_version_id": {"S": "v1"},
        "execution_arn": {"S": RESULT["execution_arn"]},
        "label": {"S": "7"},
        "confidence": {"N": "0.5"},
        "threshold": {"N": "0.75"},
        "reason": {"S": "low_confidence"},
        "selection_probability": {"N": "1"},
        "status": {"S": "pending"},
        "revision": {"N": "0"},
    }


def test_an_accepted_image_is_audited_at_the_given_rate():
    accepted = RESULT | {"accepted": True}
    item = item_for(accepted, audit_rate=1)
    assert (item["reason"], item["selection_probability"]) == ({"S": "audit"}, {"N": "1"})
    assert item_for(accepted, audit_rate=0) == {}


@pytest.mark.parametrize("rate", [0.02, 0.3])
def test_the_share_of_audits_is_the_rate_and_a_retry_decides_the_same(rate):
    images = [(f"s3://images/{random.Random(number).random()}.png", "v1") for number in range(20_000)]
    drawn = [is_drawn(*image, rate) for image in images]
    assert drawn == [is_drawn(*image, rate) for image in images]
    assert abs(sum(drawn) / len(drawn) - rate) < 4 * (rate * (1 - rate) / len(drawn)) ** 0.5


def test_a_new_version_of_an_object_is_drawn_anew():
    drawn = {is_drawn("s3://images/a.png", str(version), 0.5) for version in range(100)}
    assert drawn == {True, False}


def test_without_versions_the_etag_is_the_version():
    unversioned = {name: value for name, value in RESULT.items() if name != "s3_version_id"} | {"s3_etag": "abc"}
    item = item_for(unversioned, audit_rate=0)
    assert item["version"] == {"S": "abc"}
    assert "s3_version_id" not in item


@pytest.mark.parametrize("confidence", [0, 5e-324, 1e-131])
def test_a_confidence_below_dynamodbs_smallest_number_is_stored_as_zero(confidence):
    assert item_for(RESULT | {"confidence": confidence}, 0)["confidence"] == {"N": "0"}


def test_an_item_of_a_model_with_many_labels_stays_below_dynamodbs_maximum():
    predictions = [{"label": "x" * 256, "probability": 1e-5}] * 10_000
    item = item_for(RESULT | {"predictions": predictions}, 0)
    assert len(json.loads(item["predictions"]["S"])) == MAX_PREDICTIONS
    assert len(json.dumps(item)) < 400_000


def test_every_attribute_is_documented():
    unversioned = item_for(RESULT | {"trace_id": "1-6b"}, 0)
    assert all(name in review_item.__doc__ for name in unversioned)


def test_the_inference_id_is_of_the_images_version_and_fits_into_invoke_endpoint():
    """https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html: 1 to 64 characters"""
    names = [
        review_item.inference_id(RESULT | changes)
        for changes in ({}, {"s3_version_id": "v2"}, {"s3_key": "é" * 500}, {"s3_version_id": "", "s3_etag": "v1"})
    ]
    assert all(re.fullmatch("[0-9a-f]{64}", name) for name in names)
    assert len(set(names)) == 3 and names[0] == names[3]
