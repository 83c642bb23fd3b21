"""Let functions with the same package share it: python3 tools/share.py .aws-sam/build

sam build copies functions/ and its libraries for each function. With one copy, tools/trim.py and tools/compile.py read
it once, and sam deploy compresses it once, if SAM_CLI_BETA_PACKAGE_PERFORMANCE is set:
https://github.com/aws/aws-sam-cli/pull/7923
"""

import hashlib
import re
import shutil
import sys
from pathlib import Path


def digest(package: Path) -> str:
    """A hash of the names and contents of a folder's files."""
    found = hashlib.sha256()
    for path in sorted(path for path in package.rglob("*") if path.is_file()):
        found.update(f"{path.relative_to(package)}\0".encode())
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def share(build: Path) -> None:
    """Delete the copies of a package, and name the one that is left in the built template."""
    template = build / "template.yaml"
    text, kept = template.read_text(), dict[str, str]()
    for package in sorted(build.glob("*/")):
        name = kept.setdefault(digest(package), package.name)
        if name != package.name:
            text, count = re.subn(rf"^(\s+CodeUri: ){package.name}$", rf"\g<1>{name}", text, flags=re.MULTILINE)
            if count != 1:
                sys.exit(f"{template} names {package.name} {count} times as a CodeUri")
            shutil.rmtree(package)
    template.write_text(text)


if __name__ == "__main__":
    share(Path(sys.argv[1]))
