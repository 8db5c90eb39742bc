"""What our runs say about a paper's numbers, by rules that are fixed before any run.

A paper prints one run of each row. Whether ours agree with it is asked by a prediction interval: of
n runs with mean m and standard deviation s, one more lies in m +- t(n - 1) s sqrt(1 + 1 / n) with
95 %. What a paper claims is a gain over its baseline: for that there is a confidence interval of
ours, a test corrected over the table (Holm), and a test of equivalence (two one-sided tests).

A single run has no verdict, and an interval too wide to tell anything is no agreement: `MARGINS`
says for each metric how wide it may be.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special  # scipy.stats takes a second to import

CONFIDENCE = 0.95
# In the metrics' own units, percent: about half of what the papers claim as a gain (0.5 to 2 AP and
# mIoU on the detectors and segmentors, 0.4 to 1.5 top-1 on ImageNet), so that agreeing with a gated
# row and agreeing with its baseline are different verdicts.
MARGINS = {
    'AP': 0.5,
    'AP50': 0.5,
    'AP75': 0.75,
    'APs': 1.0,
    'APm': 0.75,
    'APl': 0.75,
    'mIoU': 0.5,
    'top1': 0.3,
    'top5': 0.2,
    'top1_error': 0.3,
    'top5_error': 0.2,
}
# More seeds than anybody will train.
MOST_SEEDS = 1000
# Of the numerical mean of a test's power, right to some 0.001.
POINTS = 1000

AGREES, HIGHER, LOWER = 'agrees', 'higher', 'lower'
UNDECIDED, NOT_RUN = 'undecided', 'not run'


@dataclass(frozen=True)
class Verdict:
    """Of a row's metric.

    `more` is how many further seeds would settle an undecided one if they spread as those so far;
    None where it is settled, where one run says nothing about the spread, or where no number would.
    """

    word: str
    n: int
    mean: float | None = None
    std: float | None = None
    half_width: float | None = None
    difference: float | None = None
    more: int | None = None

    def __str__(self) -> str:
        if self.word != UNDECIDED:
            return self.word
        if self.n < 2:
            return f'{UNDECIDED}: one run says nothing about the spread'
        if self.more is None:
            return f'{UNDECIDED}: no number of seeds would settle it'
        return f'{UNDECIDED}: {self.more} more {_seeds(self.more)} would settle it'


def against_paper(
    values: Sequence[float], paper: float, margin: float, step: float = 0.0
) -> Verdict:
    """Whether a paper's number could be one more of our runs.

    Args:
        values (Sequence[float]): A metric of our runs of a row, one for each seed.
        paper (float): The number that the paper prints.
        margin (float): The widest half-width with which the two agree, see `MARGINS`.
        step (float): The smallest difference between two values of the metric, as 0.002 for the
            percent of 50,000 images; values that are equal because they are coarse do not mean that
            nothing spreads.

    Returns:
        Verdict

    Raises:
        ValueError: for values that are not finite, or a margin that is not above 0.
    """
    if not margin > 0:
        raise ValueError(f'margin must be above 0, got {margin}')
    _check_finite(values, paper)
    n = len(values)
    if n == 0:
        return Verdict(NOT_RUN, 0)
    mean = math.fsum(values) / n
    difference = mean - paper
    if n == 1:
        return Verdict(UNDECIDED, 1, mean, difference=difference)
    std = _std(values, step)
    width = _half_width(n, std)
    found = (n, mean, std, width, difference)
    if abs(difference) > width:
        return Verdict(HIGHER if difference > 0 else LOWER, *found)
    if width <= margin:
        return Verdict(AGREES, *found)
    return Verdict(UNDECIDED, *found, more=_more(n, std, difference, margin))


@dataclass(frozen=True)
class Gain:
    """Of a row over its baseline, ours, with a 95 % interval.

    `p` is that of no gain (two-sided), `p_equivalent` that of a gain which differs from the paper's
    by the margin or more; either may be corrected by `holm` over a table. `power` is the chance to
    see, with so many runs and such a spread, a gain as large as the paper's. Both are None where no
    paper has the row.
    """

    mean: float
    low: float
    high: float
    p: float
    p_equivalent: float | None
    power: float | None
    paired: bool
    paper: float | None

    @property
    def seen(self) -> bool:
        """Whether ours differs from none, by 5 % of error."""
        return self.p < 1 - CONFIDENCE

    @property
    def equivalent(self) -> bool:
        """Whether ours is the paper's within the margin, by 5 % of error."""
        return self.p_equivalent is not None and self.p_equivalent < 1 - CONFIDENCE

    @property
    def reproduced(self) -> bool:
        """Whether ours is seen, of the paper's sign and equivalent to it. A gain that is smaller
        than the margin is equivalent to none, too: that alone reproduces nothing."""
        same_sign = self.paper is not None and self.mean * self.paper > 0
        return self.equivalent and self.seen and same_sign


def gain(
    values: Sequence[float],
    baseline: Sequence[float],
    paper: float | None,
    margin: float,
    paired: bool,
    step: float = 0.0,
) -> Gain | None:
    """How much better a row is than its table's baseline.

    Args:
        values, baseline (Sequence[float]): A metric of our runs of both rows.
        paper (float, optional): The gain that the paper prints, if one does.
        margin (float): The largest difference from it that means nothing.
        paired (bool): Whether the i-th run of both began with the same weights of the host and saw
            the same images. Then their differences are tested, else Welch's test is.
        step (float): See `against_paper`.

    Returns:
        Gain: or None if either has less than two runs.

    Raises:
        ValueError: for values that are not finite, a margin that is not above 0, or pairs of which
            one is missing.
    """
    if not margin > 0:
        raise ValueError(f'margin must be above 0, got {margin}')
    _check_finite([*values, *baseline], 0 if paper is None else paper)
    if paired and len(values) != len(baseline):
        raise ValueError(
            f'paired runs come in pairs, got {len(values)} of the row and {len(baseline)} of its '
            'baseline'
        )
    n, m = len(values), len(baseline)
    if min(n, m) < 2:
        return None
    mean = math.fsum(values) / n - math.fsum(baseline) / m
    error, freedom = _error(values, baseline, paired, step)
    if error == 0:
        known: Any = (None, None) if paper is None else (float(mean != paper), 1.0)
        return Gain(mean, mean, mean, float(mean == 0), known[0], known[1], paired, paper)
    reach = _quantile(freedom) * error
    equivalent = power = None
    if paper is not None:
        off = mean - paper
        equivalent = float(
            max(
                special.stdtr(freedom, -(off + margin) / error),
                special.stdtr(freedom, (off - margin) / error),
            )
        )
        power = _power(paper / error, freedom)
    return Gain(
        mean,
        mean - reach,
        mean + reach,
        p=float(2 * special.stdtr(freedom, -abs(mean) / error)),
        p_equivalent=equivalent,
        power=power,
        paired=paired,
        paper=paper,
    )


def _error(
    values: Sequence[float], baseline: Sequence[float], paired: bool, step: float
) -> tuple[float, float]:
    """The standard error of a gain, and its degrees of freedom."""
    n, m = len(values), len(baseline)
    if paired:
        differences = [a - b for a, b in zip(values, baseline, strict=True)]
        # of two rounded numbers
        return _std(differences, step * math.sqrt(2)) / math.sqrt(n), n - 1
    parts = [_std(values, step) ** 2 / n, _std(baseline, step) ** 2 / m]
    # Welch and Satterthwaite
    spread = parts[0] ** 2 / (n - 1) + parts[1] ** 2 / (m - 1)
    return math.sqrt(sum(parts)), sum(parts) ** 2 / spread if spread else 1


def holm(p: Sequence[float]) -> list[float]:
    """P-values of one table's comparisons, corrected together (Holm 1979), in their order.

    Raises:
        ValueError: for a value outside [0, 1].
    """
    if not all(0 <= value <= 1 for value in p):
        raise ValueError(f'p-values lie in [0, 1], got {list(p)}')
    corrected, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = largest
    return corrected


def _std(values: Sequence[float], step: float) -> float:
    """The sample's, but no less than that of what rounding to `step` hides."""
    n = len(values)
    mean = math.fsum(values) / n
    sample = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return max(sample, step / math.sqrt(12))


def _quantile(freedom: float) -> float:
    """Of Student's t: the middle 95 % lie within so many standard errors."""
    return float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2))


def _half_width(n: int, std: float) -> float:
    return _quantile(n - 1) * std * math.sqrt(1 + 1 / n)


def _more(n: int, std: float, difference: float, margin: float) -> int | None:
    """The fewest further runs after which the interval is within the margin, or excludes the paper,
    if mean and spread stay as they are."""
    goal = max(margin, abs(difference))
    if _half_width(MOST_SEEDS, std) > goal:
        return None
    # The width falls with every run.
    low, high = n, MOST_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _half_width(middle, std) <= goal else (middle, high)
    return high - n


def _power(effect: float, freedom: float) -> float:
    """The chance of a two-sided t-test to see an effect of so many standard errors: the mean over
    the spreads that may be seen, since scipy's noncentral t is not a number for large effects."""
    chances = (np.arange(POINTS) + 0.5) / POINTS
    spreads = np.sqrt(special.chdtri(freedom, 1 - chances) / freedom)
    reach = _quantile(freedom) * spreads
    return float(np.mean(special.ndtr(effect - reach) + special.ndtr(-reach - effect)))


def _check_finite(values: Sequence[float], paper: float) -> None:
    if not all(map(math.isfinite, [*values, paper])):
        raise ValueError(f'values must be finite, got {list(values)} against {paper}')


def _seeds(count: int) -> str:
    return 'seed' if count == 1 else 'seeds'
