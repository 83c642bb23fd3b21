"""Upload a training job's images to the bucket, and package the model that the job leaves there."""

import concurrent.futures
import hashlib
import tarfile
import tempfile
from pathlib import Path

from botocore.client import BaseClient
from botocore.exceptions import ClientError

from endpoint import package
from training.folders import DataError, list_images
from training.launch.errors import BucketError, DataFolderError, ModelArchiveError

CONNECTIONS = 10  # the pool size of a boto3 client


def check_bucket(s3: BaseClient, bucket: str) -> None:
    """Check that the bucket exists: the SDK would create one with a mistyped name. Raises BucketError."""
    try:
        region = s3.head_bucket(Bucket=bucket).get("BucketRegion", s3.meta.region_name)
    except ClientError as error:
        if error.response["Error"]["Code"] == "404":
            raise BucketError(f"{bucket} does not exist: create it with `aws s3 mb s3://{bucket}`") from None
        if error.response["Error"]["Code"] == "403":
            raise BucketError(f"access to {bucket} is denied, or the credentials have expired") from None
        raise
    if region != s3.meta.region_name:
        raise BucketError(
            f"{bucket} is in {region}, but the job would run in {s3.meta.region_name}: use --region {region}"
        )


def upload_images(s3: BaseClient, folder: str | Path, bucket: str, prefix: str) -> tuple[str, int, int]:
    """Upload a folder of class folders under a hash of its content. Returns (s3:// URI, files, files uploaded).

    Raises DataFolderError.
    """
    folder = Path(folder)
    try:
        paths = sorted(path for files in list_images(folder).values() for path in files)
    except DataError as error:
        raise DataFolderError(str(error)) from None
    if broken := [path for path in paths if str(path) != str(path).encode(errors="replace").decode()]:
        raise DataFolderError(f"{broken[0]}: rename the file, its name is not valid UTF-8")
    content = hashlib.sha256()
    for path in paths:
        content.update(f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    prefix = f"{prefix}/{content.hexdigest()[:16]}/"
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    there = {entry["Key"] for page in pages for entry in page.get("Contents", [])}
    missing = {key: path for path in paths if (key := prefix + path.relative_to(folder).as_posix()) not in there}
    with concurrent.futures.ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(lambda key: s3.put_object(Bucket=bucket, Key=key, Body=missing[key].read_bytes()), missing))
    return f"s3://{bucket}/{prefix}", len(paths), len(missing)


def fetch_model(s3: BaseClient, uri: str, folder: str | Path) -> None:
    """Download a job's model.tar.gz and unpack its files into `folder`. Raises ModelArchiveError."""
    bucket, key = uri.removeprefix("s3://").split("/", 1)
    with tempfile.TemporaryFile() as archive:
        s3.download_fileobj(bucket, key, archive)
        archive.seek(0)
        try:
            with tarfile.open(fileobj=archive) as opened:
                package.check_unpacked_size(opened, uri)
                for entry in filter(tarfile.TarInfo.isfile, opened):  # no links, no devices
                    path = Path(folder, entry.name)
                    if ".." in path.parts or not path.is_relative_to(folder):
                        raise ModelArchiveError(f"{uri} cannot be unpacked: {entry.name} is outside the folder")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(opened.extractfile(entry).read())  # type: ignore[union-attr]  # a regular file
        except (tarfile.TarError, EOFError) as error:
            raise ModelArchiveError(f"{uri} cannot be unpacked: {error}") from error


def pack_model(s3: BaseClient, uri: str, bucket: str, with_lib: bool = True) -> str:
    """Package a job's model for the endpoint and upload it. Returns its s3:// URL.

    Raises ModelArchiveError, PackageError.
    """
    wheels = package.fetch_wheels(package.CACHE) if with_lib else []
    with tempfile.TemporaryDirectory() as folder:
        fetch_model(s3, uri, folder)
        return package.upload(package.build(Path(folder), wheels, Path(folder)), bucket)
