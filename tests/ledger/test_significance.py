"""The statistics behind tables and verdicts, against values that were worked out elsewhere."""

import math
import random

import pytest
from scipy import stats

from kdbench.errors import KdbenchError
from kdbench.ledger.significance import (
    Difference,
    Estimate,
    Verdict,
    estimate,
    holm,
    paired,
    verdict_of_gain,
    verdict_of_score,
    welch,
)
from support.commands import ROOT

approx = pytest.approx
# Hours of sleep gained under two drugs, ten patients: Student, "The probable error of a mean",
# Biometrika 1908. The expected values are those of R 4's help page of t.test.
DRUG1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
DRUG2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def by_seed(values):
    return dict(enumerate(values))


def test_estimate_is_the_t_interval():
    # By hand: mean 70, sample variance (1 + 0 + 1) / 2 = 1, t(0.975, 2) = 4.302653 from a table.
    half = 4.302653 / math.sqrt(3)
    assert estimate([69.0, 70.0, 71.0]) == approx((70, 1, 3, 70 - half, 70 + half), abs=1e-5)


def test_estimate_of_one_value_has_no_interval():
    assert estimate([70.5]) == Estimate(70.5, None, 1, None, None)


def test_estimate_of_equal_values_is_that_value():
    assert estimate([70.1, 70.1, 70.1]) == Estimate(70.1, 0.0, 3, 70.1, 70.1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused(value):
    for refuse in (
        lambda: estimate([70.0, value]),
        lambda: paired({0: 70.0, 1: value}, {0: 69.0, 1: 69.0}),
        lambda: welch([70.0, 71.0], [value, 70.0]),
    ):
        with pytest.raises(KdbenchError, match="not a finite number"):
            refuse()


def test_nothing_to_estimate_from():
    with pytest.raises(ValueError, match="needs a value"):
        estimate([])
    with pytest.raises(ValueError, match="both sides"):
        welch([70.0], [])


def test_estimate_moves_and_scales_with_its_values():
    values = [69.31, 70.02, 70.77, 68.9]
    mean, std, n, low, high = estimate(values)
    assert estimate([v + 5 for v in values]) == approx((mean + 5, std, n, low + 5, high + 5))
    assert estimate([v / 100 for v in values]) == approx(
        (mean / 100, std / 100, n, low / 100, high / 100)
    )


def test_the_interval_covers_the_mean_95_times_in_100():
    rng = random.Random(0)
    covered = 0
    for _ in range(1000):
        found = estimate([rng.gauss(70, 0.3) for _ in range(3)])
        covered += found.low <= 70 <= found.high
    assert covered / 1000 == approx(0.95, abs=0.021)  # three standard deviations of the count


def test_paired_gives_student_s_own_example():
    found = paired(by_seed(DRUG1), by_seed(DRUG2))
    assert found[:5] == approx((-1.58, -2.4598858, -0.7001142, 10, 0.00283289), abs=1e-7)
    assert found.paired


def test_welch_gives_student_s_own_example():
    found = welch(DRUG1, DRUG2)
    assert found[:5] == approx((-1.58, -3.3654832, 0.2054832, 10, 0.07939414), abs=1e-7)
    assert not found.paired


def test_welch_of_unequal_numbers_of_seeds():
    ours, baseline = [72.1, 72.6, 71.8, 72.4], [71.2, 71.5]
    expected = stats.ttest_ind(ours, baseline, equal_var=False)
    low, high = expected.confidence_interval()
    found = welch(ours, baseline)
    assert found[:5] == approx((0.875, low, high, 2, expected.pvalue))


def test_only_shared_seeds_are_paired():
    ours = {0: 71.0, 1: 72.0, 2: 73.5, 7: 99.0}
    baseline = {2: 72.0, 1: 71.5, 0: 70.0, 9: 1.0}
    expected = stats.ttest_rel([71.0, 72.0, 73.5], [70.0, 71.5, 72.0])
    found = paired(ours, baseline)
    assert (found.n, found.mean, found.p) == (3, 1.0, approx(expected.pvalue))
    assert paired({0: 70.0}, {1: 70.0}) is None


def test_one_seed_shows_a_difference_and_no_more():
    assert paired({3: 70.5}, {3: 70.0}) == Difference(0.5, None, None, 1, None, True)
    assert welch([70.5], [70.0, 70.2]) == Difference(approx(0.4), None, None, 1, None, False)


def test_differences_without_spread():
    """Also where floating point sees one: 70.1 - 69.1 is not 70.3 - 69.3."""
    baseline = {0: 69.1, 1: 69.3, 2: 69.6}
    same = paired(baseline, baseline)
    assert same == Difference(0.0, 0.0, 0.0, 3, 1.0, True)
    shifted = paired({0: 70.1, 1: 70.3, 2: 70.6}, baseline)
    assert shifted == Difference(1.0, 1.0, 1.0, 3, 0.0, True)
    assert welch([70.0, 70.0], [70.0, 70.0]) == Difference(0.0, 0.0, 0.0, 2, 1.0, False)
    assert welch([70.1, 70.1], [69.0, 69.0, 69.0]) == Difference(1.1, 1.1, 1.1, 2, 0.0, False)


def test_welch_where_one_side_has_no_spread_is_the_test_of_the_other():
    found = welch([70.0, 71.0, 72.0], [70.0, 70.0])
    expected = stats.ttest_1samp([70.0, 71.0, 72.0], 70.0)
    assert found.p == approx(expected.pvalue)
    assert (found.low, found.high) == approx(
        tuple(bound - 70.0 for bound in expected.confidence_interval())
    )


def test_p_and_interval_agree_and_false_alarms_are_5_in_100():
    rng = random.Random(1)
    alarms = {paired: 0, welch: 0}
    for _ in range(500):
        start = [rng.gauss(0, 1) for _ in range(4)]  # what a seed does to both
        ours = [70 + x + rng.gauss(0, 0.2) for x in start]
        baseline = [70 + x + rng.gauss(0, 0.2) for x in start]
        found = {
            paired: paired(by_seed(ours), by_seed(baseline)),
            welch: welch(ours, [rng.gauss(70, 1) for _ in range(4)]),
        }
        for test, difference in found.items():
            assert (difference.p < 0.05) == (not difference.low <= 0 <= difference.high)
            alarms[test] += difference.p < 0.05
    assert alarms[paired] / 500 == approx(0.05, abs=0.03)
    assert alarms[welch] / 500 <= 0.08  # Welch's test errs towards caution


def test_pairs_see_what_the_spread_between_seeds_hides():
    baseline = {0: 68.0, 1: 70.0, 2: 72.0}
    ours = {0: 68.9, 1: 71.0, 2: 73.1}
    assert paired(ours, baseline).p < 0.01
    assert welch([*ours.values()], [*baseline.values()]).p > 0.5


def test_holm_gives_the_worked_example():
    # Worked by hand, smallest first: 4 x 0.005, 3 x 0.01, 2 x 0.03, max(1 x 0.04, 0.06).
    assert holm([0.01, 0.04, None, 0.03, 0.005]) == [
        approx(0.03),
        approx(0.06),
        None,
        approx(0.06),
        approx(0.02),
    ]


def test_holm_without_tests_and_with_one():
    assert holm([]) == []
    assert holm([None, None]) == [None, None]
    assert holm([0.03]) == [approx(0.03)]
    assert holm([0.0, 1.0]) == [0.0, 1.0]


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_holm_refuses_what_is_no_probability(p):
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.5, p])


def test_holm_never_lowers_a_p_value_nor_changes_their_order():
    rng = random.Random(2)
    for _ in range(20):
        raw = [rng.random() ** 3 for _ in range(rng.randint(1, 30))]
        adjusted = holm(raw)
        assert all(r <= a <= 1 for r, a in zip(raw, adjusted, strict=True))
        ranked = [a for _, a in sorted(zip(raw, adjusted, strict=True))]
        assert ranked == sorted(ranked)


@pytest.mark.parametrize(
    ("mean", "half", "p", "claimed", "verdict"),
    [
        (1.2, 0.4, 0.001, 1.5, Verdict.REPRODUCED),  # the claim is inside our interval
        (1.2, 0.4, 0.001, 1.6, Verdict.REPRODUCED),  # on its edge
        (1.2, 0.4, 0.001, 1.7, Verdict.NOT_REPRODUCED),  # real, but less than claimed
        (1.2, 0.4, 0.001, 0.3, Verdict.REPRODUCED),  # more than claimed
        (-1.2, 0.4, 0.001, 0.3, Verdict.NOT_REPRODUCED),  # the other sign
        (1.2, 0.4, 0.001, -0.3, Verdict.NOT_REPRODUCED),
        (-1.2, 0.4, 0.001, -1.5, Verdict.REPRODUCED),  # worse than KD, as published
        (-1.2, 0.4, 0.001, -0.3, Verdict.NOT_REPRODUCED),  # worse than published
        (1.2, 0.4, 0.001, 0.0, Verdict.NOT_REPRODUCED),  # no gain was claimed
        (1.2, 0.4, 0.049, 1.2, Verdict.REPRODUCED),
        (1.2, 0.4, 0.05, 1.2, Verdict.TIE),  # inside the noise after Holm
        (-0.1, 0.4, 0.6, 9.0, Verdict.TIE),
        (1.0, 0.0, 0.0, 72.08 - 71.08, Verdict.REPRODUCED),  # 1 but for rounding
        (-0.5, 0.2, 0.01, -8.8, Verdict.NOT_REPRODUCED),  # a loss, but not that one
        (-8.5, 0.4, 0.01, -8.8, Verdict.REPRODUCED),
    ],
)
def test_verdict_of_gain(mean, half, p, claimed, verdict):
    ours = Difference(mean, mean - half, mean + half, 3, p / 4, True)
    assert verdict_of_gain(ours, p, claimed) is verdict


def test_no_verdict_of_a_gain_without_two_shared_seeds():
    one = paired({0: 72.0}, {0: 71.0})
    assert verdict_of_gain(one, None, 1.0) is Verdict.TOO_FEW
    assert verdict_of_gain(None, None, 1.0) is Verdict.TOO_FEW


@pytest.mark.parametrize(
    ("published", "std", "seeds", "verdict"),
    [
        (73.0, None, None, Verdict.REPRODUCED),
        (73.5, None, None, Verdict.REPRODUCED),  # on the edge of 73.0 +- 0.5
        (73.6, None, None, Verdict.NOT_REPRODUCED),
        (72.4, None, None, Verdict.NOT_REPRODUCED),
        (73.6, 0.2, 4, Verdict.REPRODUCED),  # 0.2 / sqrt(4) wider
        (72.4, 0.2, 4, Verdict.REPRODUCED),
        (73.61, 0.2, 4, Verdict.NOT_REPRODUCED),
        (73.7, 0.2, None, Verdict.REPRODUCED),  # as if of one seed
    ],
)
def test_verdict_of_score(published, std, seeds, verdict):
    ours = Estimate(73.0, 0.2, 3, 72.5, 73.5)
    assert verdict_of_score(ours, published, std, seeds) is verdict


def test_no_verdict_of_a_score_without_two_seeds():
    assert verdict_of_score(None, 73.0, None) is Verdict.NOT_RUN
    assert verdict_of_score(estimate([73.0]), 73.0, None) is Verdict.TOO_FEW


@pytest.mark.parametrize("n", [2, 3, 4, 5, 10])
def test_the_page_of_what_n_seeds_can_show(n):
    quantile, root = stats.t(n - 1).ppf, math.sqrt(n)
    half, ten, thirty = (quantile(1 - 0.025 / tests) / root for tests in (1, 10, 30))
    page = (ROOT / "docs" / "statistics.md").read_text()
    (row,) = (line for line in page.splitlines() if line.startswith(f"| {n} | "))
    found = float(row.split("|")[4].removesuffix(" s "))
    power = stats.nct.sf(quantile(0.975), n - 1, found * root)
    assert power == approx(0.8, abs=0.01)
    assert row == (
        f"| {n} | {quantile(0.975):.2f} | {half:.2f} s | {found:.2f} s | {ten:.2f} s "
        f"| {thirty:.2f} s |"
    )
