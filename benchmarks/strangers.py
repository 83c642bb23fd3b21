"""How many images a model accepts at a threshold, for images of its classes and of none.

    PYTHONPATH=endpoint .venv/bin/python -m benchmarks.strangers MODEL IMAGES... [--save FOLDER]

MODEL is the folder of a trained model. IMAGES are folders of images, photographs, of which 75 random squares are cut
out, and the word noise. The label `other` does not count as accepted. --save also writes the squares, for training.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image

import inference

THRESHOLDS = (0.75, 0.95, 0.99)
PIECES, LEAST, MOST = 75, 64, 256  # squares of a photograph, and their sides in pixels


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def pieces(photograph: Path) -> list[bytes]:
    """Random squares of a photograph; the same ones each time."""
    pixels, random = np.asarray(Image.open(photograph).convert("RGB")), np.random.default_rng(0)
    sides = random.integers(LEAST, MOST, PIECES)
    corners = [(random.integers(pixels.shape[0] - side), random.integers(pixels.shape[1] - side)) for side in sides]
    return [png(pixels[y : y + side, x : x + side]) for side, (y, x) in zip(sides, corners, strict=True)]


def images(source: str, size: tuple[int, int]) -> list[bytes]:
    """The encoded images of a folder, the pieces of a photograph, or 300 images of noise in the model's size."""
    if source == "noise":
        random = np.random.default_rng(0)
        return [png(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(300)]
    path = Path(source)
    return [file.read_bytes() for file in sorted(path.rglob("*.png"))] if path.is_dir() else pieces(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", nargs="+")
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    model = inference.model_fn(args.model)
    print("| images | number |" + "".join(f" {threshold} |" for threshold in THRESHOLDS))
    print("|---|---|" + "---|" * len(THRESHOLDS))
    for source in args.images:
        encoded, name = images(source, model.size), Path(source).stem
        best = [
            inference.classify([inference.preprocess(image, model.size)], model)[0]["predictions"][0]
            for image in encoded
        ]
        confidences = np.array([each["probability"] * (each["label"] != "other") for each in best])
        shares = "".join(f" {(confidences >= threshold).mean():.1%} |" for threshold in THRESHOLDS)
        print(f"| {name} | {len(encoded)} |{shares}", flush=True)
        if args.save:
            args.save.mkdir(parents=True, exist_ok=True)
            for number, image in enumerate(encoded):
                (args.save / f"{name}-{number:04d}.png").write_bytes(image)


if __name__ == "__main__":
    main()
