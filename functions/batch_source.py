"""An item of a batch's source -> the request for its image, as in the input of a single execution.

prefix             {Key, Size, StorageClass, ...}, from ListObjectsV2
CSV, JSON Lines    S3's names (Bucket, Key, VersionId, StorageClass), or ours (s3_bucket, s3_key, s3_version_id)
inventory          S3's names; every value is a string, and keys are URL-encoded
"""

from typing import Any
from urllib.parse import unquote_plus

ARCHIVED = ("GLACIER", "DEEP_ARCHIVE")  # not GLACIER_IR: Instant Retrieval


def field(item: Any, ours: str, of_s3: str) -> Any:
    """A field of an item under either of its names; None if it is missing or empty."""
    return (item.get(ours) or item.get(of_s3) or None) if isinstance(item, dict) else None


def names_an_image(item: Any) -> bool:
    """Whether the item names an object that can be an image: not a folder of the console, not a delete marker."""
    is_folder = str(field(item, "s3_key", "Key")).endswith("/") and str(field(item, "size", "Size") or 0) == "0"
    is_deleted = str(field(item, "is_delete_marker", "IsDeleteMarker")).lower() == "true"
    return not is_folder and not is_deleted


def archive_of(item: Any) -> str | None:
    """The storage class in which the object must be restored before it can be read, or None."""
    storage_class = field(item, "storage_class", "StorageClass")
    return storage_class if storage_class in ARCHIVED else None


def request_for(item: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """{s3_bucket, s3_key, s3_version_id, execution_arn, threshold}, not yet validated; without what is missing."""
    key = field(item, "s3_key", "Key")
    request = {
        "s3_bucket": field(item, "s3_bucket", "Bucket") or batch["s3_bucket"],
        "s3_key": unquote_plus(key) if batch["url_encoded"] and isinstance(key, str) else key,
        "s3_version_id": field(item, "s3_version_id", "VersionId"),
        "execution_arn": batch["execution_arn"],
        "threshold": batch["threshold"],
    }
    return {name: value for name, value in request.items() if value is not None}
