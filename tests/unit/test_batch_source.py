import pytest

from batch_source import archive_of, names_an_image, request_for

BATCH = {"s3_bucket": "images", "execution_arn": "arn", "threshold": 0.75, "url_encoded": False}
COMMON = {"execution_arn": "arn", "threshold": 0.75}


def test_a_listed_object_is_in_the_batchs_bucket():
    item = {"Etag": '"e"', "Key": "in/a+b %41.png", "LastModified": 1, "Size": 9, "StorageClass": "STANDARD"}
    assert request_for(item, BATCH) == {"s3_bucket": "images", "s3_key": "in/a+b %41.png", **COMMON}


@pytest.mark.parametrize(
    "item",
    [
        {"Bucket": "other", "Key": "a.png", "VersionId": "v1"},
        {"s3_bucket": "other", "s3_key": "a.png", "s3_version_id": "v1"},
    ],
)
def test_a_manifest_can_name_buckets_and_versions_in_s3s_words_or_ours(item):
    assert request_for(item, BATCH) == {"s3_bucket": "other", "s3_key": "a.png", "s3_version_id": "v1", **COMMON}


def test_empty_columns_are_missing():
    assert request_for({"Bucket": "", "Key": "a.png", "VersionId": ""}, BATCH)["s3_bucket"] == "images"
    assert "s3_version_id" not in request_for({"Key": "a.png", "VersionId": ""}, BATCH)


@pytest.mark.parametrize(
    ("encoded", "key"),
    [("a%20b.png", "a b.png"), ("a+b.png", "a b.png"), ("a%2Bb.png", "a+b.png"), ("%C3%BC.png", "ü.png")],
)
def test_the_keys_of_an_inventory_are_decoded(encoded, key):
    assert request_for({"Bucket": "b", "Key": encoded}, BATCH | {"url_encoded": True})["s3_key"] == key


@pytest.mark.parametrize("item", [{}, "a.png", ["a.png"], None, {"Key": ""}])
def test_an_item_without_a_key_is_a_request_without_one(item):
    assert request_for(item, BATCH) == {"s3_bucket": "images", **COMMON}
    assert names_an_image(item)  # so that it gets a line


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"Key": "in/folder/", "Size": 0}, False),
        ({"Key": "in/folder/", "Size": "0"}, False),
        ({"Key": "in/folder/", "Size": 7}, True),
        ({"Key": "in/empty.png", "Size": 0}, True),
        ({"Key": "gone.png", "IsDeleteMarker": "true"}, False),
        ({"Key": "old.png", "IsLatest": "false", "IsDeleteMarker": "false"}, True),
    ],
)
def test_folders_and_delete_markers_name_no_image(item, expected):
    assert names_an_image(item) is expected


def test_only_the_classes_that_must_be_restored_are_archived():
    classes = ["STANDARD", "STANDARD_IA", "GLACIER_IR", "INTELLIGENT_TIERING", "GLACIER", "DEEP_ARCHIVE"]
    assert [archive_of({"StorageClass": name}) for name in classes] == [None] * 4 + ["GLACIER", "DEEP_ARCHIVE"]
    assert archive_of({"Key": "a.png"}) is archive_of({"StorageClass": ["GLACIER"]}) is None
