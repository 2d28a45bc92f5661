"""Many questions at once: p-values adjusted so that their number makes no false alarm likelier."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p-values, in the order given.

    Where each one at most ``alpha`` is called a finding, the chance of any false finding among all of them is at most
    ``alpha``, however the questions depend on each other.

    Args:
        p_values: Each in [0, 1].

    Raises:
        ValueError: If a value is outside [0, 1] or not a number.

    Source: Holm (1979), Scandinavian Journal of Statistics 6:65-70; adjusted form as in R's ``p.adjust``.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    wrong = [value for value in p_values if not 0 <= value <= 1]
    if wrong:
        raise ValueError(f"p-values must be in [0, 1], got {wrong[0]}")
    order = sorted(range(len(p_values)), key=lambda position: p_values[position])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, position in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = running
    return adjusted
