"""Measure how far the labels that a model predicts have drifted from the mix that it was trained on.

The population stability index (PSI) is the sum over labels of (p - q) ln(p / q), where p and q are a label's shares of
the two mixes; 0 means that they are equal. By convention, below 0.1 is negligible and above 0.25 large. Small samples
differ from any mix by chance: `by_chance` gives the index to expect.

functions/drift.py is a symbolic link to this file, so it needs nothing outside Python's standard library.
"""

import math
import random
from collections import Counter
from collections.abc import Mapping

DRAWS = 500
LARGE = 1000  # images, and at least ten for each label: from here on, the index by chance is inverse to their number


def contributions(reference: Mapping[str, int], observed: Mapping[str, int]) -> dict[str, float]:
    """Each label's contribution to the index, from its counts in the two mixes; their sum is the index.

    Half an image is added to every count, because a label missing from one mix would make the index infinite.
    """
    labels = sorted({*reference, *observed})
    totals = [sum(mix.values()) + len(labels) / 2 for mix in (observed, reference)]
    found = {}
    for label in labels:
        p, q = ((mix.get(label, 0) + 0.5) / total for mix, total in zip((observed, reference), totals, strict=True))
        found[label] = (p - q) * math.log(p / q)
    return found


def by_chance(reference: Mapping[str, int], images: int, quantile: float = 0.95, seed: int = 0) -> float:
    """A quantile of the index over random draws of `images` images from the reference mix itself."""
    generator = random.Random(seed)
    drawn = min(images, max(LARGE, 10 * len(reference)))
    labels, counts = list(reference), list(reference.values())
    indices = sorted(
        sum(contributions(reference, Counter(generator.choices(labels, counts, k=drawn))).values())
        for _ in range(DRAWS)
    )
    return indices[math.ceil(quantile * DRAWS) - 1] * drawn / images
