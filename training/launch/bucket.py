"""What job.py puts into the bucket, and what it takes out of it: pictures in, a trained model out."""

import concurrent.futures
import hashlib
import tarfile
import tempfile
from pathlib import Path

from botocore.exceptions import ClientError

from endpoint import package
from training.launch.errors import BucketError, DataFolderError, ModelArchiveError

CONNECTIONS = 10  # that a boto3 client keeps


def check_bucket(s3, bucket):
    """The SDK would make a bucket of a mistyped name. Raises BucketError."""
    try:
        region = s3.head_bucket(Bucket=bucket).get("BucketRegion", s3.meta.region_name)
    except ClientError as error:
        if error.response["Error"]["Code"] == "404":
            raise BucketError(f"{bucket} does not exist: `aws s3 mb s3://{bucket}` makes it") from None
        if error.response["Error"]["Code"] == "403":
            raise BucketError(f"{bucket} may not be used with these credentials, or they have expired") from None
        raise
    if region != s3.meta.region_name:
        raise BucketError(
            f"{bucket} lies in {region}, the job would run in {s3.meta.region_name}: give --region {region}"
        )


def upload_pictures(s3, folder, bucket, prefix):
    """Upload a folder of class folders below a hash of its content. Returns (s3:// URI, files, files uploaded).

    Raises DataFolderError.
    """
    paths = [path for path in sorted(Path(folder).glob("[!.]*/[!.]*")) if path.is_file()]
    if len({path.parent for path in paths}) < 2:
        raise DataFolderError(f"{folder} needs two or more folders of images, one for each class")
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


def fetch_model(s3, uri, folder):
    """Unpack the files of a job's model.tar.gz into `folder`. Raises ModelArchiveError."""
    bucket, key = uri.removeprefix("s3://").split("/", 1)
    with tempfile.TemporaryFile() as archive:
        s3.download_fileobj(bucket, key, archive)
        archive.seek(0)
        try:
            with tarfile.open(fileobj=archive) as opened:
                for entry in filter(tarfile.TarInfo.isfile, opened):  # no links, no devices
                    path = Path(folder, entry.name)
                    if ".." in path.parts or not path.is_relative_to(folder):
                        raise ModelArchiveError(f"{uri} is not unpacked: {entry.name} would lie outside of it")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(opened.extractfile(entry).read())
        except (tarfile.TarError, EOFError) as error:
            raise ModelArchiveError(f"{uri} is not unpacked: {error}") from error


def pack_model(s3, uri, bucket, with_lib=True):
    """Pack a job's model for the endpoint; returns the s3:// URL. Raises ModelArchiveError, PackageError."""
    wheels = package.fetch_wheels(package.CACHE) if with_lib else []
    with tempfile.TemporaryDirectory() as folder:
        fetch_model(s3, uri, folder)
        archive = package.pack(package.collect(Path(folder), wheels))
        path = Path(folder, "packed.tar.gz")
        package.write(archive, path)
        return package.upload(path, bucket, package.key_of(archive))
