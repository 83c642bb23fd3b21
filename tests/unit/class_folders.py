"""Images to train on."""

import numpy as np
from PIL import Image


def write_classes(folder, counts, size=(24, 16), seed=0):
    """Write noisy images into class folders; each class has its own brightness. Returns the folder."""
    random = np.random.default_rng(seed)
    for index, (label, count) in enumerate(counts.items()):
        (folder / label).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(100 * index, 100 * index + 50, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder
