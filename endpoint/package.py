"""Pack a trained model as SageMaker's scikit-learn image wants it.

    python endpoint/package.py --model-dir .local/model --output .local/package [--bucket B [--prefix P]] [--lib none]

    model.onnx, metadata.json    from the training
    code/inference.py            the four functions
    lib/                         ONNX Runtime and Pillow for that image's Python 3.12 on x86_64, which it lacks; found
                                 with PYTHONPATH=/opt/ml/model/lib. Not in code/, on which the image runs pip at every
                                 start. --lib none leaves it out, for an image that has them itself.

The same model gives the same bytes. The archive's place below --output, models/<hash of its bytes>/model.tar.gz, is
also its key in the bucket: SageMaker takes new bytes under an old key for no change. The last line printed is the
archive's s3:// URL, or its path where no bucket is given.
"""

import argparse
import gzip
import hashlib
import io
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
    "onnxruntime/capi/libonnxruntime.so",  # for programs in C; the Python module has the same code inside
    "onnxruntime/datasets/",
    "onnxruntime/quantization/",
    "onnxruntime/tools/",
    "onnxruntime/transformers/",
)


class PackageError(Exception):
    """The archive cannot be made; the message says what is missing."""


def fetch_wheels(cache, wheels=WHEELS):
    """Paths of the wheels {file name: sha256}; pip downloads those that `cache` has not got. Raises PackageError."""
    missing = {name: digest for name, digest in wheels.items() if not _has(cache / name, digest)}
    if missing:
        print(f"Downloading {', '.join(missing)}", flush=True)
        _download(missing, cache)
    return [cache / name for name in wheels]


def collect(model_dir, wheels):
    """The archive's files as {name: bytes}. Raises PackageError."""
    files = {}
    for name, path in {
        "model.onnx": model_dir / "model.onnx",
        "metadata.json": model_dir / "metadata.json",
        "code/inference.py": Path(__file__).with_name("inference.py"),
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


def pack(files):
    """model.tar.gz of {name: bytes} as bytes: names sorted, no times, owners or modes of this machine."""
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


def key_of(archive):
    return f"models/{hashlib.sha256(archive).hexdigest()[:16]}/model.tar.gz"


def write(archive, path):
    """Write all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(archive)
    partial.replace(path)


def upload(path, bucket, key):
    """Returns the s3:// URL. The endpoint and the credentials are boto3's: AWS_ENDPOINT_URL, AWS_PROFILE, ..."""
    import boto3  # not needed to make an archive

    boto3.client("s3").upload_file(str(path), bucket, key)
    return f"s3://{bucket}/{key}"


def _has(path, digest):
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest


def _download(wheels, cache):
    """pip download, by exact version and hash, for the image's platform whatever this machine's is."""
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
                f"pip could not download {' and '.join(map(_pin, wheels))} for lib/. Without a network, put "
                f"{' and '.join(wheels)} into {cache}, or leave lib/ out with --lib none. pip said:\n"
                + pip.stderr.strip()
            )
        for name in wheels:
            (Path(folder) / name).replace(cache / name)


def _pin(wheel):
    name, version = wheel.split("-")[:2]
    return f"{name}=={version}"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", type=Path, default=ROOT / ".local/model")
    parser.add_argument("--output", type=Path, default=ROOT / ".local/package")
    parser.add_argument("--bucket", help="upload there")
    parser.add_argument("--prefix", default="", help="put before the key")
    parser.add_argument("--lib", choices=["container", "none"], default="container")
    args = parser.parse_args(argv)

    wheels = fetch_wheels(CACHE) if args.lib == "container" else []
    archive = pack(collect(args.model_dir, wheels))
    path = args.output / key_of(archive)
    write(archive, path)
    print(f"{path}: {len(archive) / 1e6:.1f} MB")
    if args.bucket:
        key = "/".join(filter(None, [args.prefix.strip("/"), key_of(archive)]))
        print(upload(path, args.bucket, key))
    else:
        print(path)


if __name__ == "__main__":
    try:
        main()
    except PackageError as error:
        sys.exit(f"PackageError: {error}")
