"""How far the mix of labels that a model predicts is from the mix that it was trained on.

The population stability index is the sum over labels of (p - q) ln(p / q), with p and q a label's share in the two
mixes: 0 when they are equal. By custom, below 0.1 is no change to speak of and above 0.25 a large one; but a few images
differ from any mix by chance alone, and `by_chance` says by how much.
"""

from collections.abc import Mapping

import numpy as np

DRAWS = 2000


def contributions(reference: Mapping[str, int], observed: Mapping[str, int]) -> dict[str, float]:
    """Each label's part of the index, from its counts in the two mixes: the index is their sum.

    Half an image is added to every count: a label that one mix lacks would make the index infinite.
    """
    labels = sorted({*reference, *observed})
    counts = np.array([[mix.get(label, 0) for label in labels] for mix in (reference, observed)])
    return dict(zip(labels, _contributions(*counts).tolist(), strict=True))


def by_chance(reference: Mapping[str, int], images: int, quantile: float = 0.95, seed: int = 0) -> float:
    """The index that so many images of the reference's own mix stay below, in this share of random draws."""
    counts = np.array(list(reference.values()))
    draws = np.random.default_rng(seed).multinomial(images, counts / counts.sum(), size=DRAWS)
    return float(np.quantile(_contributions(counts, draws).sum(axis=-1), quantile))


def _contributions(reference: np.ndarray, observed: np.ndarray) -> np.ndarray:
    p, q = ((counts + 0.5) / (counts + 0.5).sum(axis=-1, keepdims=True) for counts in (observed, reference))
    return (p - q) * np.log(p / q)
