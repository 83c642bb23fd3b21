"""Remove the descriptions of services that the built functions never call: python3 tools/trim.py .aws-sam/build

botocore describes more than 400 services. A package keeps those of ALWAYS and those whose clients its own modules
create; without documentation, and uncompressed, because every cold start reads them.
"""

import ast
import gzip
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Clients that libraries create: botocore for an assumed role, the tracer outside Lambda. Others must be added here.
ALWAYS = {"sts", "xray"}
FACTORIES = {"client", "resource", "create_client"}  # of boto3, its Session, and botocore's Session
DATA = ("botocore/data", "boto3/data")


class TrimError(Exception):
    """The services that the functions use cannot be determined, or do not exist."""


def own_modules(package: Path) -> list[Path]:
    """The modules that no installed library lists as its own."""
    records = [record.read_text().splitlines() for record in package.glob("*.dist-info/RECORD")]
    installed = {line.split(",")[0] for lines in records for line in lines}
    return [path for path in package.rglob("*.py") if path.relative_to(package).as_posix() not in installed]


def services(source: Path) -> Iterator[str]:
    """The services whose clients this file creates. Raises TrimError for a name that is not a literal."""
    try:
        tree = ast.parse(source.read_text())
    except SyntaxError as error:
        place = f"{source.name}:{error.lineno}"
        raise TrimError(f"A function cannot be compiled: {place}: SyntaxError: {error.msg}") from None
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        name = getattr(call.func, "attr", getattr(call.func, "id", None))
        arguments = [*call.args[:1], *(each.value for each in call.keywords if each.arg == "service_name")]
        if name not in FACTORIES or not arguments:
            continue
        if not (isinstance(arguments[0], ast.Constant) and isinstance(arguments[0].value, str)):
            place = f"{source.name}:{call.lineno}"
            raise TrimError(f"{place}: {ast.unparse(call)}: tools/trim.py must know the service: name it in a literal")
        yield arguments[0].value


def undocumented(value: Any) -> Any:
    """A description with empty documentation, which botocore reads here and there. A member of that name is a dict."""
    if isinstance(value, dict):
        is_text = {key: key == "documentation" and isinstance(each, str) for key, each in value.items()}
        return {key: "" if is_text[key] else undocumented(each) for key, each in value.items()}
    return [undocumented(each) for each in value] if isinstance(value, list) else value


def read(path: Path) -> Any:
    data = path.read_bytes()
    return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, separators=(",", ":")))


def trim(package: Path) -> None:
    """Trim one function's package in place. Raises TrimError."""
    used = ALWAYS.union(*map(services, own_modules(package)))
    known = {path.name for path in package.glob("botocore/data/*/")}
    if unknown := used - known:
        raise TrimError(f"{package.name}: botocore has no service {', '.join(sorted(unknown))}")
    prefixes = set()
    for folder in (folder for data in DATA for folder in package.glob(f"{data}/*/")):
        if folder.name not in used:
            shutil.rmtree(folder)
            continue
        for path in folder.glob("*/*.json*"):
            description = undocumented(read(path))
            path.unlink()
            if path.name.startswith("examples-"):
                continue
            write(path.with_name(path.name.removesuffix(".gz")), description)
            if path.name.startswith("service-"):
                prefixes.add(description.get("metadata", {}).get("endpointPrefix"))
    endpoints = read(package / "botocore/data/endpoints.json")
    for partition in endpoints["partitions"]:
        partition["services"] = {name: each for name, each in partition["services"].items() if name in prefixes}
    write(package / "botocore/data/endpoints.json", endpoints)


if __name__ == "__main__":
    try:
        for package in Path(sys.argv[1]).glob("*/"):
            trim(package)
    except TrimError as error:
        sys.exit(str(error))
