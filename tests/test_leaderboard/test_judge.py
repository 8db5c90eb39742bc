"""Verdicts against scipy's own tests, simulations and worked examples."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

stats = pytest.importorskip('scipy.stats')

from mmattn.leaderboard.judge import (  # noqa: E402
    AGREES,
    HIGHER,
    LOWER,
    MARGINS,
    NOT_RUN,
    UNDECIDED,
    _power,
    against_paper,
    gain,
    holm,
)
from mmattn.papers import load  # noqa: E402

FINITE = st.floats(-100, 100, allow_nan=False)


def spread(n, std, mean=0.0):
    """n values of that very mean and standard deviation."""
    values = np.random.randn(n)
    values = (values - values.mean()) / values.std(ddof=1)
    return list(mean + std * values)


@pytest.mark.parametrize('n, widths', [(2, 15.56), (3, 4.97), (5, 3.04), (1000, 1.96)])
def test_the_half_width_of_n_runs(n, widths):
    found = against_paper(spread(n, 1), 0, 100)
    assert found.half_width == pytest.approx(widths, abs=0.006)
    assert found.std == pytest.approx(1) and found.mean == pytest.approx(0)
    assert found.n == n and found.word == AGREES


def test_one_more_run_lies_in_the_interval_with_95_percent():
    runs = np.random.default_rng(0).normal(50, 0.3, (4000, 5))
    inside = sum(against_paper(list(run[:4]), run[4], 1e9).word == AGREES for run in runs) / len(
        runs
    )
    assert abs(inside - 0.95) < 3 * math.sqrt(0.95 * 0.05 / len(runs))


@pytest.mark.parametrize(
    'values, paper, word, text',
    [
        ([], 50, NOT_RUN, 'not run'),
        ([50.0], 50, UNDECIDED, 'undecided: one run says nothing about the spread'),
        ([50.0, 50.02, 49.99], 50.05, AGREES, 'agrees'),
        ([51.0, 51.02, 50.99], 50, HIGHER, 'higher'),
        ([49.0, 49.02, 48.99], 50, LOWER, 'lower'),
        # 3.18 s sqrt(5 / 4) is 0.53, 2.78 s sqrt(6 / 5) is 0.45
        (spread(4, 0.149), 0, UNDECIDED, 'undecided: 1 more seed would settle it'),
        (spread(2, 0.149), 0, UNDECIDED, 'undecided: 3 more seeds would settle it'),
        # far enough to be told from the paper
        (spread(3, 1), 2.5, UNDECIDED, 'undecided: 6 more seeds would settle it'),
        (spread(10, 1), 0, UNDECIDED, 'undecided: no number of seeds would settle it'),
    ],
)
def test_verdicts(values, paper, word, text):
    found = against_paper(values, paper, 0.5)
    assert (found.word, str(found)) == (word, text)


@given(
    st.lists(FINITE, min_size=2, max_size=6),
    FINITE,
    st.floats(0.01, 10),
    st.floats(0, 0.1),
)
def test_what_a_verdict_means(values, paper, margin, step):
    found = against_paper(values, paper, margin, step)
    assert found.difference == pytest.approx(statistics.fmean(values) - paper, abs=1e-9)
    if found.word == AGREES:
        assert found.half_width <= margin and abs(found.difference) <= found.half_width
    elif found.word == UNDECIDED:
        assert found.half_width > margin and abs(found.difference) <= found.half_width
        if found.more is not None:  # so many are enough, and fewer are not
            goal = max(margin, abs(found.difference))

            def width(n):
                return stats.t.ppf(0.975, n - 1) * found.std * math.sqrt(1 + 1 / n)

            assert width(found.n + found.more) <= goal < width(found.n + found.more - 1)
    else:
        assert abs(found.difference) > found.half_width
        assert (found.word == HIGHER) == (found.difference > 0)


def test_equal_results_spread_by_what_rounding_hides():
    exact = against_paper([70.0] * 3, 70.001, 0.3)
    assert exact.word == LOWER and exact.std == 0
    coarse = against_paper([70.0] * 3, 70.001, 0.3, step=0.002)
    assert coarse.word == AGREES and coarse.std == pytest.approx(0.002 / math.sqrt(12))


def test_welch():
    a, b = np.random.default_rng(1).normal([[80.4], [80.0]], [[0.2], [0.5]], (2, 6))
    found = gain(list(a), list(b[:4]), paper=0.5, margin=0.3, paired=False)
    theirs = stats.ttest_ind(a, b[:4], equal_var=False)
    interval = theirs.confidence_interval()
    assert (found.p, found.low, found.high) == pytest.approx(
        (theirs.pvalue, interval.low, interval.high)
    )
    # TOST: each bound of 0.5 -+ 0.3 by a one-sided test of its own
    above = stats.ttest_ind(a - 0.2, b[:4], equal_var=False, alternative='greater').pvalue
    below = stats.ttest_ind(a - 0.8, b[:4], equal_var=False, alternative='less').pvalue
    assert found.p_equivalent == pytest.approx(max(above, below))
    assert found.equivalent == (max(above, below) < 0.05)


def test_pairs():
    host = np.random.default_rng(2).normal(75, 1, 5)
    a, b = host + np.random.default_rng(3).normal(0.7, 0.1, 5), host
    found = gain(list(a), list(b), paper=0.7, margin=0.3, paired=True)
    theirs = stats.ttest_rel(a, b)
    interval = theirs.confidence_interval()
    assert (found.p, found.low, found.high) == pytest.approx(
        (theirs.pvalue, interval.low, interval.high)
    )
    assert found.reproduced and found.p < 0.01
    # Not taken in pairs, the hosts' own spread hides it.
    assert gain(list(a), list(b), 0.7, 0.3, paired=False).p > 0.2


def test_power():
    """Against how often a gain as large as the paper's is found in 4000 simulated tables."""
    rng = np.random.default_rng(4)
    values = spread(5, 0.4)
    found = gain(values, spread(5, 0.4), paper=0.6, margin=0.3, paired=False)
    a, b = rng.normal(0.6, 0.4, (4000, 5)), rng.normal(0, 0.4, (4000, 5))
    seen = (stats.ttest_ind(a, b, axis=1).pvalue < 0.05).mean()
    assert found.power == pytest.approx(seen, abs=0.03)
    assert 0.4 < seen < 0.7


@pytest.mark.parametrize('freedom', [1, 1.7, 4, 20, 500])
@pytest.mark.parametrize('effect', [-2.0, 0.0, 0.5, 3.0, 10.0])
def test_power_is_that_of_the_noncentral_t(effect, freedom):
    most = stats.t.ppf(0.975, freedom)
    theirs = stats.nct.sf(most, freedom, effect) + stats.nct.cdf(-most, freedom, effect)
    # of which scipy has no value in some places
    assert math.isnan(theirs) or _power(effect, freedom) == pytest.approx(theirs, abs=0.002)


@pytest.mark.parametrize('effect', [10.0, 17.0, 60.0, 1e6])
def test_power_of_large_effects_is_a_number(effect):
    """scipy's noncentral t is none for some of them, of fractional degrees of freedom."""
    for freedom in (1.7, 3.4, 6):
        assert 0.96 < _power(effect, freedom) <= 1


@pytest.mark.parametrize('paired', [False, True])
@pytest.mark.parametrize('step', [0.0, 0.01])
def test_gains_of_equal_runs(paired, step):
    found = gain([71.0] * 3, [70.0] * 3, paper=1.0, margin=0.3, paired=paired, step=step)
    assert found.mean == 1 and found.p < 0.01 and found.reproduced
    assert (found.high - found.low == 0) == (step == 0)
    other = gain([70.0] * 3, [70.0] * 3, paper=1.0, margin=0.3, paired=paired, step=step)
    assert other.p == 1 and not other.reproduced


def test_equivalent_to_less_than_the_margin_reproduces_nothing():
    found = gain(spread(5, 0.02, 70.01), spread(5, 0.02, 70), paper=0.05, margin=0.3, paired=False)
    assert found.equivalent and not found.seen and not found.reproduced
    opposite = gain(spread(5, 0.02, 70), spread(5, 0.02, 70.1), 0.05, margin=0.3, paired=False)
    assert opposite.equivalent and opposite.seen and not opposite.reproduced


@pytest.mark.parametrize('paired', [False, True])
def test_the_gain_of_a_row_that_no_paper_has(paired):
    for found in (
        gain([71.0, 71.2], [70.0, 70.1], paper=None, margin=0.3, paired=paired),
        gain([71.0, 71.0], [70.0, 70.0], paper=None, margin=0.3, paired=paired),
    ):
        assert found.mean == pytest.approx(1, abs=0.1) and found.paper is None
        assert found.p_equivalent is None and found.power is None and not found.reproduced


def test_one_run_has_no_gain():
    assert gain([70.0], [69.0, 69.1], 1, 0.3, paired=False) is None
    assert gain([], [], 1, 0.3, paired=True) is None


def test_holm():
    # Holm's own example: 0.01, 0.04, 0.03, 0.005 become 0.03, 0.06, 0.06, 0.02
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1, 1]


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_the_order(p):
    found = holm(p)
    assert all(before <= after <= 1 for before, after in zip(p, found, strict=True))
    order = sorted(range(len(p)), key=p.__getitem__)
    assert [found[i] for i in order] == sorted(found)


@pytest.mark.parametrize(
    'call, words',
    [
        (lambda: against_paper([1.0, math.nan], 1, 0.5), 'must be finite'),
        (lambda: against_paper([1.0], 1, 0), 'margin must be above 0, got 0'),
        (lambda: gain([1.0], [1.0], 1, -1, True), 'margin must be above 0, got -1'),
        (lambda: gain([1.0, 2], [1.0, math.inf], 1, 1, True), 'must be finite'),
        (lambda: gain([1.0, 2], [1.0], 1, 1, True), 'come in pairs, got 2 of the row and 1'),
        (lambda: holm([0.1, 1.1]), r'p-values lie in \[0, 1\]'),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_every_metric_that_is_trained_has_a_margin():
    """Parameters and FLOPs are counted, not trained."""
    metrics = {m for paper in ('cat', 'drtam') for t in load(paper).values() for m in t['metrics']}
    assert metrics - {'params', 'gflops', 'gmac'} == set(MARGINS)
