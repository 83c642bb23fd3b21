"""Delete every object of a bucket, with all versions and delete markers: python tools/empty_bucket.py BUCKET

`aws s3 rm` leaves the old versions of a versioned bucket, and `aws s3api delete-objects` accepts 1,000 keys.
"""

import sys

import boto3
from botocore.client import BaseClient


def empty(s3: BaseClient, bucket: str) -> int:
    """Delete all versions and delete markers; return their number."""
    deleted = 0
    for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket):  # at most 1,000 a page
        rows = page.get("Versions", []) + page.get("DeleteMarkers", [])
        keys = [{"Key": row["Key"], "VersionId": row["VersionId"]} for row in rows]
        if not keys:
            continue
        response = s3.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
        if errors := response.get("Errors"):
            sys.exit(f"{len(errors)} objects were not deleted, for example {errors[0]}")
        deleted += len(keys)
    return deleted


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1]:
        sys.exit(__doc__)
    if input(f"Delete everything in s3://{sys.argv[1]}, irrevocably? Type the bucket's name: ") != sys.argv[1]:
        sys.exit("Nothing was deleted.")
    print(f"{empty(boto3.client('s3'), sys.argv[1]):,} versions deleted")
