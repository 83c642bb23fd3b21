"""Delete what the make commands created, except models that cannot be trained again from here: python3 tools/clean.py

The model of the digits takes seconds to train and is deleted. A model of your own stays, with its reports and the
models that training has replaced. Runs on Python 3.11 or later with only the standard library.
"""

import json
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCAL = ROOT / ".local"
MODELS, REPORTS = LOCAL / "model", LOCAL / "training"
DIGITS = LOCAL / "data/digits/train"


def is_of_the_digits(model: Path) -> bool:
    """Whether make train created this model: its data.json names the digits or, without that file, its labels do."""
    try:
        return Path(json.loads((model / "data.json").read_text())["train"]) == DIGITS.resolve()
    except FileNotFoundError:
        return json.loads((model / "metadata.json").read_text())["labels"] == list("0123456789")


def own_models() -> list[Path]:
    """The folders of models of your own, the current and the replaced ones."""
    models = [path.parent for path in (*MODELS.glob("metadata.json"), *MODELS.glob("previous/*/metadata.json"))]
    return [model for model in models if not is_of_the_digits(model)]


def delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def main() -> None:
    kept = own_models()
    for path in (ROOT / ".venv", ROOT / ".aws-sam"):
        delete(path)
    for path in LOCAL.iterdir() if LOCAL.exists() else []:
        if not (kept and path in (MODELS, REPORTS)):
            delete(path)
    if not kept:
        return delete(LOCAL)
    for model in kept:
        labels = ", ".join(json.loads((model / "metadata.json").read_text())["labels"])
        print(f"Kept your model in {model.relative_to(ROOT)}, which knows {labels}")
    print("To delete models too: rm -r .local/model .local/training")


if __name__ == "__main__":
    main()
