"""Measure how far the labels that a model predicts have drifted from the mix that it was trained on.

The population stability index (PSI) is the sum over labels of (p - q) ln(p / q), where p and q are a label's shares of
the two mixes; 0 means that they are equal. By convention, below 0.1 is negligible and above 0.25 large. Small samples
differ from any mix by chance: `by_chance` gives the index to expect.
"""

from collections.abc import Mapping

import numpy as np

DRAWS = 2000


def contributions(reference: Mapping[str, int], observed: Mapping[str, int]) -> dict[str, float]:
    """Each label's contribution to the index, from its counts in the two mixes; their sum is the index.

    Half an image is added to every count, because a label missing from one mix would make the index infinite.
    """
    labels = sorted({*reference, *observed})
    counts = np.array([[mix.get(label, 0) for label in labels] for mix in (reference, observed)])
    return dict(zip(labels, _contributions(*counts).tolist(), strict=True))


def by_chance(reference: Mapping[str, int], images: int, quantile: float = 0.95, seed: int = 0) -> float:
    """A quantile of the index over random draws of `images` images from the reference mix itself."""
    counts = np.array(list(reference.values()))
    draws = np.random.default_rng(seed).multinomial(images, counts / counts.sum(), size=DRAWS)
    return float(np.quantile(_contributions(counts, draws).sum(axis=-1), quantile))


def _contributions(reference: np.ndarray, observed: np.ndarray) -> np.ndarray:
    p, q = ((counts + 0.5) / (counts + 0.5).sum(axis=-1, keepdims=True) for counts in (observed, reference))
    return (p - q) * np.log(p / q)
