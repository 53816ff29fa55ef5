"""Statistics of differences between methods, against the noise between seeds.

docs/statistics.md explains the choices. Scores are in percent, differences in points;
every interval is a 95% interval of Student's t.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from scipy import stats

from kdbench.errors import KdbenchError

CONFIDENCE = 0.95
LEVEL = 0.05  # larger or equal p-values are ties
# Scores move in steps of one test image, far above this; smaller differences are rounding.
DIGITS = 9


class Estimate(NamedTuple):
    """A mean over seeds; estimates that need several seeds are None for one."""

    mean: float
    std: float | None  # sample standard deviation
    n: int
    low: float | None  # the interval of the mean
    high: float | None


class Difference(NamedTuple):
    """Ours minus the baseline's mean score; estimates that need several seeds are None for one."""

    mean: float
    low: float | None  # the interval of the mean difference
    high: float | None
    n: int  # shared seeds; without pairs, the seeds of the side that has fewer
    p: float | None  # two-sided
    paired: bool


class Verdict(StrEnum):
    """The verdict of our runs on a published number."""

    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    TIE = "tie"
    NOT_RUN = "not run"
    TOO_FEW = "too few seeds"
    NO_CLAIM = "no claim"


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of one score per seed, with its t interval.

    Raises:
        ValueError: there is no value.
        KdbenchError: a value is not finite.
    """
    if not values:
        raise ValueError("an estimate needs a value")
    mean, error = _mean_and_error(values)
    n = len(values)
    if error is None:
        return Estimate(mean, None, n, None, None)
    low, high = _interval(mean, error, n - 1)
    return Estimate(mean, statistics.stdev(values), n, low, high)


def paired(ours: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Do a paired t test over the seeds that both have; None when they share none.

    Args:
        ours: score by seed.
        baseline: score by seed.

    Raises:
        KdbenchError: a value is not finite.
    """
    gaps = [round(ours[seed] - baseline[seed], DIGITS) for seed in sorted({*ours} & {*baseline})]
    if not gaps:
        return None
    mean, error = _mean_and_error(gaps)
    return _difference(mean, error, len(gaps) - 1, len(gaps), paired=True)


def welch(ours: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Do Welch's t test, for scores whose seeds do not match and whose spreads may differ.

    Raises:
        ValueError: a side has no value.
        KdbenchError: a value is not finite.
    """
    if not ours or not baseline:
        raise ValueError("a difference needs a value on both sides")
    (mean, error), (base, base_error) = _mean_and_error(ours), _mean_and_error(baseline)
    mean, n = round(mean - base, DIGITS), min(len(ours), len(baseline))
    if error is None or base_error is None:
        return _difference(mean, None, 0, n, paired=False)
    a, b = error**2, base_error**2
    # Satterthwaite's degrees of freedom.
    spread = a**2 / (len(ours) - 1) + b**2 / (len(baseline) - 1)
    df = (a + b) ** 2 / spread if spread else math.inf
    return _difference(mean, math.sqrt(a + b), df, n, paired=False)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Return Holm's adjusted p-values of one family of tests, in order; None (no test) stays None.

    Raises:
        ValueError: a value is no probability.
    """
    known = [p for p in ps if p is not None]
    if not all(0 <= p <= 1 for p in known):
        raise ValueError(f"p-values lie between 0 and 1: {known}")
    adjusted, least = {}, 0.0
    for rank, p in enumerate(sorted(known)):
        least = max(least, min(1.0, (len(known) - rank) * p))
        adjusted[p] = least
    return [None if p is None else adjusted[p] for p in ps]


def verdict_of_gain(ours: Difference | None, p_adjusted: float | None, claimed: float) -> Verdict:
    """Judge a claimed gain over KD by ours.

    Args:
        ours: our gain over KD, in points; None where the two share no seed.
        p_adjusted: its p-value, adjusted for the other methods of its table.
        claimed: the published gain over the same source's KD, in points.
    """
    if ours is None or ours.low is None or ours.high is None or p_adjusted is None:
        return Verdict.TOO_FEW
    if p_adjusted >= LEVEL:
        return Verdict.TIE
    same_sign = ours.mean * claimed > 0
    reached = round(claimed, DIGITS) <= round(ours.high, DIGITS)
    # A larger gain than claimed confirms the claim; a smaller loss than claimed does not.
    as_bad = claimed > 0 or round(ours.low, DIGITS) <= round(claimed, DIGITS)
    reproduced = same_sign and reached and as_bad
    return Verdict.REPRODUCED if reproduced else Verdict.NOT_REPRODUCED


def verdict_of_score(
    ours: Estimate | None,
    published: float,
    published_std: float | None,
    published_seeds: int | None = None,
) -> Verdict:
    """Judge a published score by ours, for the baselines, which claim no gain.

    Args:
        ours: our score, in percent; None where it was not run.
        published: the published mean, in percent.
        published_std: its sample standard deviation over seeds, where given.
        published_seeds: the number of its seeds, where given; else one is assumed.
    """
    if ours is None:
        return Verdict.NOT_RUN
    if ours.low is None or ours.high is None:
        return Verdict.TOO_FEW
    slack = (published_std or 0.0) / math.sqrt(published_seeds or 1)
    low, high = round(ours.low - slack, DIGITS), round(ours.high + slack, DIGITS)
    inside = low <= round(published, DIGITS) <= high
    return Verdict.REPRODUCED if inside else Verdict.NOT_REPRODUCED


def _mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and its standard error, which is None for one value."""
    for value in values:
        if not math.isfinite(value):
            raise KdbenchError(f"a score is {value}, not a finite number: rerun its run")
    # `statistics` counts in exact fractions: equal values have a deviation of exactly 0.
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return float(statistics.mean(values)), error


def _interval(mean: float, error: float, df: float) -> tuple[float, float]:
    if error == 0:
        return mean, mean
    low, high = stats.t.interval(CONFIDENCE, df, loc=mean, scale=error)
    return float(low), float(high)


def _difference(mean: float, error: float | None, df: float, n: int, *, paired: bool) -> Difference:
    if error is None:
        return Difference(mean, None, None, n, None, paired)
    low, high = _interval(mean, error, df)
    if error == 0:  # there is no spread, so the difference is certain
        return Difference(mean, low, high, n, 1.0 if mean == 0 else 0.0, paired)
    return Difference(mean, low, high, n, float(2 * stats.t.sf(abs(mean) / error, df)), paired)
