"""Package a trained model for SageMaker's scikit-learn image.

    python endpoint/package.py --model-dir .local/model --output .local/package [--bucket B [--prefix P]] [--lib none]
                               [--comparison .local/comparison/comparison.json]

    model.onnx, metadata.json    from training
    code/inference.py            model_fn, input_fn, predict_fn, output_fn
    code/pixels.py               which it imports
    lib/                         ONNX Runtime, which the image lacks, and a newer Pillow, for its Python 3.12 on x86_64.
                                 PYTHONPATH=/opt/ml/model/lib finds them. Not in code/, where the image runs pip at
                                 every start. --lib none omits it, for an image that has both packages.

Packaging is reproducible: the same model gives the same bytes. The archive's path below --output,
models/<hash of its bytes>/model.tar.gz, is also its key in the bucket, because SageMaker does not notice new bytes
under an existing key. A copy of metadata.json lies beside it: PublishReviewMetrics compares the labels that the model
predicts with those that it was trained on. --comparison adds comparison.json, which training/compare.py wrote about
this model as the challenger: make promote requires it. The last line printed is the archive's s3:// URL or, without
--bucket, its path.
"""

import argparse
import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".local/cache"
WHEELS = {
    "onnxruntime-1.32.0-cp312-cp312-manylinux_2_28_x86_64.whl": (
        "99e1074c4b2197accd5073052a465361be17b89c093b8ffb6e6bd8f986c52df8"
    ),
    "pillow-13.0.0-cp312-cp312-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl": (
        "42d63be3af4f9b951b199b0a9d23365d37ab14687e6d77b74940432c8515c4ca"
    ),
}
NOT_SERVED = (
    "onnxruntime/capi/libonnxruntime.so",  # for C programs; the Python module contains the same code
    "onnxruntime/datasets/",
    "onnxruntime/quantization/",
    "onnxruntime/tools/",
    "onnxruntime/transformers/",
)


MAX_UNPACKED = 2_000_000_000  # bytes; the packaged model of this project has 100 MB


class PackageError(Exception):
    """The archive cannot be built or uploaded; the message says why."""


def fetch_wheels(cache: Path, wheels: dict[str, str] = WHEELS) -> list[Path]:
    """Paths of the wheels {file name: sha256} in `cache`; pip downloads the missing ones. Raises PackageError."""
    missing = {name: digest for name, digest in wheels.items() if not _has(cache / name, digest)}
    if missing:
        print(f"Downloading {', '.join(missing)}", flush=True)
        _download(missing, cache)
    return [cache / name for name in wheels]


def collect(model_dir: Path, wheels: list[Path]) -> dict[str, bytes]:
    """The archive's files as {name: bytes}. Raises PackageError."""
    files = {}
    for name, path in {
        "model.onnx": model_dir / "model.onnx",
        "metadata.json": model_dir / "metadata.json",
        "code/inference.py": Path(__file__).with_name("inference.py"),
        "code/pixels.py": Path(__file__).with_name("pixels.py"),
    }.items():
        if not path.is_file():
            raise PackageError(f"{path} is missing: train a model first")
        files[name] = path.read_bytes()
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            served = (entry for entry in archive.infolist() if not entry.is_dir())
            served = (entry for entry in served if not entry.filename.startswith(NOT_SERVED))
            files.update({f"lib/{entry.filename}": archive.read(entry) for entry in served})
    return files


def pack(files: dict[str, bytes]) -> bytes:
    """A model.tar.gz of {name: bytes}, with sorted names and without this machine's times, owners and modes."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(filename="", fileobj=buffer, mode="wb", compresslevel=6, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name in sorted(files):
            entry = tarfile.TarInfo(name)  # mode 0644, owner 0, time 0
            entry.size = len(files[name])
            archive.addfile(entry, io.BytesIO(files[name]))
    return buffer.getvalue()


def check_unpacked_size(archive: tarfile.TarFile, name: str) -> None:
    """Raise PackageError if the files of a model.tar.gz exceed MAX_UNPACKED. Reads only as far as the limit."""
    size = 0
    for entry in archive:
        size += entry.size
        if size > MAX_UNPACKED:
            raise PackageError(f"{name} unpacks to more than {MAX_UNPACKED:,} bytes: it is not a model's archive")


def key_of(archive: bytes) -> str:
    return f"models/{hashlib.sha256(archive).hexdigest()[:16]}/model.tar.gz"


def write(archive: bytes, path: Path) -> None:
    """Write the file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(archive)
    partial.replace(path)


def build(model_dir: Path, wheels: list[Path], output: Path, comparison: Path | None = None) -> Path:
    """Write the archive, with metadata.json and the comparison beside it, below `output`. Returns the archive's path.

    Raises PackageError.
    """
    files = collect(model_dir, wheels)
    compared = read_comparison(comparison, files["model.onnx"]) if comparison else None
    archive = pack(files)
    path = output / key_of(archive)
    write(archive, path)
    write(files["metadata.json"], path.with_name("metadata.json"))
    if compared:
        write(compared, path.with_name("comparison.json"))
    return path


def read_comparison(path: Path, model: bytes) -> bytes:
    """A comparison.json whose challenger is this model.onnx. Raises PackageError."""
    try:
        content = path.read_bytes()
        challenger = json.loads(content)["challenger"]["model_sha256"]
    except OSError as error:
        raise PackageError(f"--comparison {path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise PackageError(f"--comparison {path} is no comparison.json of training/compare.py") from None
    if challenger != (own := hashlib.sha256(model).hexdigest()):
        raise PackageError(
            f"--comparison {path} is about another challenger, model.onnx {str(challenger)[:12]}; this model.onnx is "
            f"{own[:12]}: compare this model"
        )
    return content


def files_of(archive: Path) -> list[Path]:
    """The files that `build` wrote, in the order of their upload: the archive comes last."""
    beside = [archive.with_name(name) for name in ("metadata.json", "comparison.json")]
    return [*(path for path in beside if path.exists()), archive]


def upload(path: Path, bucket: str, prefix: str = "") -> str:
    """Upload what `build` wrote, under the same keys, after `prefix`. Returns the archive's s3:// URL.

    boto3's variables apply: AWS_ENDPOINT_URL, AWS_PROFILE, ... Raises PackageError.
    """
    import boto3  # not needed without --bucket
    from boto3.exceptions import S3UploadFailedError
    from botocore.exceptions import BotoCoreError, ParamValidationError

    folder = "/".join(filter(None, [prefix.strip("/"), "models", path.parent.name]))
    try:
        s3 = boto3.client("s3")
        for each in files_of(path):
            s3.upload_file(str(each), bucket, f"{folder}/{each.name}")
    except ParamValidationError:
        raise PackageError(f"--bucket {bucket} is not the name of a bucket") from None
    except (BotoCoreError, S3UploadFailedError) as error:
        raise PackageError(f"{path} was packaged, but not uploaded to s3://{bucket}: {error}") from None
    return f"s3://{bucket}/{folder}/{path.name}"


def _has(path: Path, digest: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest


def _download(wheels: dict[str, str], cache: Path) -> None:
    """Run pip download with exact versions and hashes, for the image's platform rather than this machine's."""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text("".join(f"{_pin(name)} --hash=sha256:{wheels[name]}\n" for name in wheels))
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--implementation=cp", "--python-version=3.12"]
        command += ["--platform=manylinux_2_28_x86_64", "--require-hashes", f"--requirement={requirements}"]
        pip = subprocess.run([*command, f"--dest={folder}"], stderr=subprocess.PIPE, text=True)
        if pip.returncode:
            raise PackageError(
                f"pip could not download {' and '.join(map(_pin, wheels))} for lib/. Without a network, copy "
                f"{' and '.join(wheels)} to {cache}, or omit lib/ with --lib none. pip's error:\n" + pip.stderr.strip()
            )
        for name in wheels:
            (Path(folder) / name).replace(cache / name)


def _pin(wheel: str) -> str:
    name, version = wheel.split("-")[:2]
    return f"{name}=={version}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", type=Path, default=ROOT / ".local/model")
    parser.add_argument("--output", type=Path, default=ROOT / ".local/package")
    parser.add_argument("--bucket", help="upload the archive to this bucket")
    parser.add_argument("--prefix", default="", help="prefix of the key")
    parser.add_argument("--comparison", type=Path, help="comparison.json, to upload beside the archive")
    parser.add_argument("--lib", choices=["container", "none"], default="container")
    args = parser.parse_args(argv)

    wheels = fetch_wheels(CACHE) if args.lib == "container" else []
    path = build(args.model_dir, wheels, args.output, args.comparison)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    print(upload(path, args.bucket, args.prefix) if args.bucket else path)


if __name__ == "__main__":
    try:
        main()
    except PackageError as error:
        sys.exit(f"PackageError: {error}")
    except PermissionError as error:
        sys.exit(f"{error.filename} cannot be written: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted.")
