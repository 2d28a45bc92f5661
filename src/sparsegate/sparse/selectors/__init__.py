"""The table of selectors: how the entries to train are scored."""

from __future__ import annotations

from importlib.metadata import entry_points

from sparsegate.contracts import MaskSelector
from sparsegate.errors import UsageError, did_you_mean
from sparsegate.sparse.selectors.fisher import FisherSelector
from sparsegate.sparse.selectors.gradient import GradientSelector
from sparsegate.sparse.selectors.magnitude import MagnitudeSelector
from sparsegate.sparse.selectors.random import RandomSelector

SELECTORS: dict[str, type[MaskSelector]] = {
    "random": RandomSelector,
    "magnitude": MagnitudeSelector,
    "gradient": GradientSelector,
    "fisher": FisherSelector,
}


def selector_table() -> dict[str, type[MaskSelector]]:
    """Return the built-in selectors and those of installed packages (entry points ``sparsegate.selectors``).

    Raises:
        UsageError: If an installed package takes a name that is in use.
    """
    table = dict(SELECTORS)
    for entry in entry_points(group="sparsegate.selectors"):
        if entry.name in table:
            raise UsageError(f"selector '{entry.name}' of {entry.value} is already defined; rename the entry point")
        table[entry.name] = entry.load()
    return table


def make_selector(name: str) -> MaskSelector:
    """Return a selector by name.

    Raises:
        UsageError: If there is none; the message lists the choices.
    """
    table = selector_table()
    if name not in table:
        raise UsageError(f"unknown selector '{name}'{did_you_mean(name, table)}")
    return table[name]()
