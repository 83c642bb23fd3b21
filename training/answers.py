"""A model's answers to images, for another program: python training/answers.py MODEL

MODEL is a folder or a model.tar.gz, as for compare.py. The first line of the output describes the model. Then each line
of the input, the path of an image as JSON, is answered by a line: {"label", "confidence"}, or {"error"} for a file that
endpoint/inference.py cannot read.
"""

import json
import sys
from pathlib import Path

from compare import ModelFileError, answer, load


def main(model: Path) -> None:
    candidate = load("model", model)
    print(json.dumps(candidate.about), flush=True)
    for line in sys.stdin:
        print(json.dumps(described(answer(Path(json.loads(line)), [candidate.model]))), flush=True)


def described(answered: list[tuple[str, float, float]] | str) -> dict[str, str | float]:
    if isinstance(answered, str):
        return {"error": answered}
    ((label, confidence, _seconds),) = answered
    return {"label": label, "confidence": confidence}


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except ModelFileError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
