"""Statistics of two classifiers that classified the same images, a champion and a challenger.

gained: images that the challenger gets right and the champion wrong; lost: the other way round; images: all of them.
The difference is the challenger's accuracy minus the champion's, (gained - lost) / images.

The tests are one-sided and exact: whatever the true accuracies are, a test passes by mistake in at most LEVEL of all
samples. That holds for images that were drawn independently and were not used for training.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr, gammaln, xlog1py, xlogy
from scipy.stats import binom, norm

LEVEL = 0.05
POWER = 0.8  # of `images_needed`
MOST_IMAGES = 1_000_000
NUISANCES = 200  # values of the unknown discordance for which a probability is calculated
STEPS = 16  # of the search for the bound, which halves its error
RESAMPLES = 2_000


@dataclass(frozen=True)
class Result:
    """How a challenger did on a set of images. p_better, p_worse and p_not_worse: p-values of the tests.

    verdict: "better"; "not worse", by more than the margin; "worse"; or "undecided".
    """

    gained: int
    lost: int
    images: int
    margin: float
    difference: float
    p_better: float
    p_worse: float
    p_not_worse: float
    verdict: str


def judge(gained: int, lost: int, images: int, margin: float) -> Result:
    """Test whether the challenger is better, not worse by more than `margin` (0 to 1), or worse.

    The first two need no correction for two tests, because better implies not worse (a closed test).
    """
    better, worse = mcnemar(gained, lost), mcnemar(lost, gained)
    not_worse = p_value(gained, lost, images, -margin)
    if better <= LEVEL:
        verdict = "better"
    elif not_worse <= LEVEL:
        verdict = "not worse"
    else:
        verdict = "worse" if worse <= LEVEL else "undecided"
    return Result(gained, lost, images, margin, (gained - lost) / images, better, worse, not_worse, verdict)


def mcnemar(gained: int, lost: int) -> float:
    """The p-value of McNemar's exact test that the challenger is better."""
    return float(binom.sf(gained - 1, gained + lost, 0.5))


def p_value(gained: int, lost: int, images: int, difference: float) -> float:
    """The p-value of the exact unconditional test that the true difference is greater than `difference`.

    (Hsueh, Liu and Chen, Biometrics 57, 2001.) The probability of `score` being at least as high as observed depends
    on how many images both models get right or wrong, which is unknown: the p-value is the highest probability. Unlike
    a bootstrap or a normal approximation, it also holds if few images are gained or lost, or none.
    """
    observed = float(score(np.array(gained), np.array(lost), images, difference)) - 1e-9
    gains = np.arange(images + 1)
    losses = _most_lost(gains, images, difference, observed)
    gains, losses = gains[losses >= 0], losses[losses >= 0]
    # Equal steps of the angle, in which the standard deviation of a share is constant.
    both = (1 - abs(difference)) / 2 * np.sin(np.linspace(0, np.pi / 2, NUISANCES)) ** 2
    gain, loss = max(difference, 0) + both, max(-difference, 0) + both
    highest = max(_probability(gains, losses, images, *shares) for shares in zip(gain, loss, strict=True))
    return min(highest, 1.0)


def score(gained: np.ndarray, lost: np.ndarray, images: int, difference: float) -> np.ndarray:
    """How many standard errors the observed difference is above `difference` (Tango, Statistics in Medicine 17, 1998).

    The standard error is the one expected if `difference` were true; it is 0 only if that is 0 and nothing changed.
    """
    linear = gained * (1 + difference) + lost * (1 - difference) + 2 * images * difference
    root = np.sqrt(np.maximum(linear**2 - 8 * images * gained * difference * (1 + difference), 0))
    gain = (linear + root) / (4 * images)  # the share of gained images, estimated with maximum likelihood
    variance = np.maximum(images * (2 * gain - difference * (1 + difference)), 0)
    above = gained - lost - images * difference
    return np.divide(above, np.sqrt(variance), out=np.zeros(np.shape(above)), where=variance > 1e-12)


def lower_bound(gained: int, lost: int, images: int) -> float:
    """The true difference is above this with 95% confidence: the highest difference that passes `p_value`.

    It is above 0 only if the challenger also passes McNemar's test, so that the two never contradict each other.
    """
    low, high = -1.0, (gained - lost) / images
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(gained, lost, images, middle) <= LEVEL else (low, middle)
    return low if mcnemar(gained, lost) <= LEVEL else min(low, 0.0)


def images_needed(result: Result, margin: float) -> int | None:
    """About how many images like these would show that the challenger is not worse by `margin`; 0: that it is better.

    (With a probability of POWER; Miettinen, Biometrics 24, 1968.) None if they would not, or take over MOST_IMAGES.
    """
    above = result.difference + margin
    if above <= 0:
        return None
    discordant = (result.gained + result.lost) / result.images
    count = (norm.ppf(1 - LEVEL) + norm.ppf(POWER)) ** 2 * (discordant - result.difference**2) / above**2
    count = max(count, math.log(LEVEL) / math.log1p(-margin) if margin else 0, 1.1 * result.images)
    if count > MOST_IMAGES:
        return None
    unit = 10 ** max(len(str(int(count))) - 2, 0)
    return math.ceil(count / unit) * unit


def holm(p_values: list[float]) -> list[float]:
    """p-values adjusted for their number (Holm, 1979): the chance of any false one below 5% is at most 5%."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min((len(p_values) - rank) * p_values[index], 1.0))
        adjusted[index] = highest
    return adjusted


def bootstrap(values: np.ndarray, seed: int) -> np.ndarray:
    """Sums [RESAMPLES, columns] of the rows of values [N, columns], drawn N at a time with replacement.

    A row holds what both models made of an image, so that the resamples are paired.
    """
    random = np.random.default_rng(seed)
    return np.array([values[random.integers(0, len(values), len(values))].sum(0) for _ in range(RESAMPLES)])


def interval(differences: np.ndarray) -> tuple[float, float] | None:
    """The middle 95% of the resamples' differences; None if all are equal, from which nothing follows."""
    low, high = np.nanpercentile(differences, [2.5, 97.5])
    return (float(low), float(high)) if low < high else None


def _most_lost(gains: np.ndarray, images: int, difference: float, least: float) -> np.ndarray:
    """For each number of gained images, the most lost ones with which the score is at least `least`; -1 for none."""
    low, high = np.full(gains.shape, -1), images - gains
    while (low < high).any():
        middle = (low + high + 1) // 2
        passes = score(gains, middle, images, difference) >= least
        low, high = np.where(passes, middle, low), np.where(passes, high, middle - 1)
    return low


def _probability(gains: np.ndarray, losses: np.ndarray, images: int, gain: float, loss: float) -> float:
    """The probability of gaining one of the numbers `gains` and losing at most the `losses` beside it.

    gain, loss: the probabilities that an image is gained or lost.
    """
    reach = 8 * math.sqrt(images * gain * (1 - gain)) + 10  # the rest is negligible
    near = slice(*np.searchsorted(gains, [images * gain - reach, images * gain + reach]))
    gains, losses = gains[near], losses[near]
    combinations = gammaln(images + 1) - gammaln(gains + 1) - gammaln(images - gains + 1)
    binomial = np.exp(combinations + xlogy(gains, gain) + xlog1py(images - gains, -gain))
    share = min(loss / (1 - gain), 1.0) if gain < 1 else 0.0
    return float(binomial @ bdtr(losses, images - gains, share))
