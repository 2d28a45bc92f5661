"""How often the gates' intervals and rules err: exact where all counts can be listed, else by seeded simulation.

    python tests/benchmarks/error_rates.py

Prints a table of how often a 95% interval holds the true value and how often its lower or upper end alone does, which
is what a gate rests on (97.5% stated), then how often the standard policy's regression rule lets a candidate pass.
Half a minute.
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from scipy.stats import binom, multinomial

from sparsegate.contracts import Interval, TextScore
from sparsegate.evaluation.bootstrap import cluster_bootstrap
from sparsegate.evaluation.forgetting import perplexity_ratio
from sparsegate.evaluation.intervals import clopper_pearson, newcombe, tango, wilson
from sparsegate.evaluation.judge_error import JudgeCalibration, corrected_rate
from sparsegate_gates.policy import load_policy

_DRAWS = 1000
_LEAST_CHANCE = 1e-9


class Coverage(NamedTuple):
    """Shares of the cases, weighed by their chance."""

    both: float
    low: float
    high: float


def coverage(cases: Iterable[tuple[float, Interval]], truth: float) -> Coverage:
    """Return how often the truth lies in an interval, above its lower end, below its upper end."""
    sums = np.zeros(3)
    total = 0.0
    for chance, interval in cases:
        above, below = interval.low <= truth, truth <= interval.high
        sums += chance * np.array([above and below, above, below])
        total += chance
    return Coverage(*(sums / total))


def one_rate(interval: Callable[[int, int], Interval], n: int, rate: float) -> Iterator[tuple[float, Interval]]:
    """List all counts of one rate."""
    for right in range(n + 1):
        chance = float(binom.pmf(right, n, rate))
        if chance > _LEAST_CHANCE:
            yield chance, interval(right, n)


def paired(n: int, won: float, lost: float) -> Iterator[tuple[float, Interval]]:
    """List all counts of items that the candidate wins and loses, with Tango's interval."""
    most_won, most_lost = (int(binom.ppf(1 - _LEAST_CHANCE, n, share)) for share in (won, lost))
    for plus in range(most_won + 1):
        for minus in range(most_lost + 1):
            chance = float(multinomial.pmf([plus, minus, n - plus - minus], n, [won, lost, 1 - won - lost]))
            if chance > _LEAST_CHANCE:
                yield chance, tango(n - plus - minus, plus, minus, 0)


def independent(n: int, rate: float, other_n: int, other: float) -> Iterator[tuple[float, Interval]]:
    """List all counts of two rates, with Newcombe's interval."""
    for a in range(n + 1):
        for b in range(other_n + 1):
            chance = float(binom.pmf(a, n, rate) * binom.pmf(b, other_n, other))
            if chance > _LEAST_CHANCE:
                yield chance, newcombe(a, n, b, other_n)


def clustered(documents: int, size: int) -> Iterator[tuple[float, Interval]]:
    """Draw answers that resemble each other within a document; 2/3 are right in the mean."""
    draw = np.random.default_rng(0)
    names = np.repeat(np.arange(documents), size).tolist()
    for _ in range(_DRAWS // 2):
        levels = draw.beta(2, 1, size=documents)
        right = (draw.random((documents, size)) < levels[:, None]).astype(float).ravel().tolist()
        yield 1.0, cluster_bootstrap(right, names, resamples=400)


def judged(
    n: int, truth: float, labelled: int, sensitivity: float, specificity: float
) -> Iterator[tuple[float, Interval]]:
    """Draw what a judge says that errs, and what its calibration found of its errors."""
    draw = np.random.default_rng(0)
    shown = truth * sensitivity + (1 - truth) * (1 - specificity)
    for _ in range(_DRAWS):
        found, cleared = draw.binomial(labelled, sensitivity), draw.binomial(labelled, specificity)
        calibration = JudgeCalibration(int(found), labelled, int(cleared), labelled)
        yield 1.0, corrected_rate(int(draw.binomial(n, shown)), n, calibration)[1]


def forgotten(texts: int) -> Iterator[tuple[float, Interval]]:
    """Draw losses of a model that forgets, which are skewed, against a base's; the true ratio is e**0.2."""
    draw = np.random.default_rng(0)
    base = [TextScore(str(i), "k", 30.0, 10) for i in range(texts)]
    for _ in range(_DRAWS // 4):
        losses = draw.gamma(2.0, 0.1, size=texts)
        lines = [TextScore(str(i), "k", 30.0 + 10 * loss, 10) for i, loss in enumerate(losses)]
        yield 1.0, perplexity_ratio(lines, base, resamples=500)[1]


def main() -> None:
    """Print both tables."""
    say = sys.stdout.write
    say("| interval | setting | holds the truth | low end | high end |\n|---|---|---|---|---|\n")
    for n in (40, 60, 160, 480):
        for rate in (0.02, 0.1, 0.78):
            for name, interval in (("Wilson", wilson), ("Clopper-Pearson", clopper_pearson)):
                _line(name, f"n {n}, rate {rate:g}", coverage(one_rate(interval, n, rate), rate))
    for n, won, lost in ((200, 0.02, 0.02), (480, 0.02, 0.02), (480, 0.02, 0.05), (480, 0.06, 0.06), (60, 0.05, 0.05)):
        _line("Tango", f"n {n}, won {won:g}, lost {lost:g}", coverage(paired(n, won, lost), won - lost))
    for n, rate, other_n, other in ((60, 0.05, 60, 0.05), (60, 0.3, 60, 0.1), (40, 0.9, 30, 0.7)):
        found = coverage(independent(n, rate, other_n, other), rate - other)
        _line("Newcombe", f"n {n} and {other_n}, rates {rate:g} and {other:g}", found)
    _line("cluster bootstrap", "60 documents of 8", coverage(clustered(60, 8), 2 / 3))
    for truth in (0.0, 0.02, 0.1, 0.4):
        found = coverage(judged(160, truth, 60, 0.8, 0.9), truth)
        _line("corrected for a judge", f"n 160, rate {truth:g}, 60 labels of each kind", found)
    _line("ratio of perplexities", "80 texts", coverage(forgotten(80), math.exp(0.2)))

    margin = load_policy("standard").gates["regression"].margin
    say(f"\n| candidate, 480 items, margin {margin:g} | passes |\n|---|---|\n")
    for name, won, lost in (
        ("the champion itself", 0.0, 0.0),
        ("equal, 2% won and 2% lost", 0.02, 0.02),
        ("equal, 6% won and 6% lost", 0.06, 0.06),
        ("3 points worse, 2% won", 0.02, 0.05),
        ("5 points worse, 2% won", 0.02, 0.07),
        ("5 points worse, 6% won", 0.06, 0.11),
    ):
        passed = sum(chance for chance, interval in paired(480, won, lost) if interval.low >= -margin)
        say(f"| {name} | {passed:.2%} |\n")


def _line(name: str, setting: str, found: Coverage) -> None:
    sys.stdout.write(f"| {name} | {setting} | {found.both:.3f} | {found.low:.3f} | {found.high:.3f} |\n")


if __name__ == "__main__":
    main()
