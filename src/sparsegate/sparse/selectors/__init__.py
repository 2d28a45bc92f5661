"""The table of selectors: how the entries to train are scored.

A configuration names a selector of the table, or combines several: ``fisher*magnitude`` multiplies the ranks of two or
more; ``magnitude@fisher:0.3`` keeps the best 30% of the columns by ``fisher`` and scores the entries in them by
``magnitude``. Either side of ``@`` may be a product.
"""

from __future__ import annotations

from importlib.metadata import entry_points

from sparsegate.contracts import MaskSelector
from sparsegate.errors import UsageError, did_you_mean
from sparsegate.sparse.selectors.adam import AdamSelector
from sparsegate.sparse.selectors.combine import PrefilterSelector, ProductSelector
from sparsegate.sparse.selectors.fisher import FisherSelector
from sparsegate.sparse.selectors.gradient import GradientSelector
from sparsegate.sparse.selectors.lift import LiftSelector
from sparsegate.sparse.selectors.magnitude import MagnitudeBottomSelector, MagnitudeSelector
from sparsegate.sparse.selectors.movement import MovementSelector
from sparsegate.sparse.selectors.random import RandomSelector
from sparsegate.sparse.selectors.separable import SeparableSelector
from sparsegate.sparse.selectors.taylor import TaylorSelector

SELECTORS: dict[str, type[MaskSelector]] = {
    "random": RandomSelector,
    "magnitude": MagnitudeSelector,
    "magnitude_bottom": MagnitudeBottomSelector,
    "lift": LiftSelector,
    "gradient": GradientSelector,
    "fisher": FisherSelector,
    "taylor": TaylorSelector,
    "adam": AdamSelector,
    "movement": MovementSelector,
    "separable": SeparableSelector,
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


def make_selector(expression: str) -> MaskSelector:
    """Return a selector by name, or the combination an expression describes.

    Args:
        expression: ``NAME``, a product ``NAME*NAME``, or ``ENTRIES@COLUMNS:SHARE`` of names or products.

    Raises:
        UsageError: If a name is unknown (the message lists the choices) or the expression is malformed.

    Example:
        >>> make_selector("fisher*magnitude").name
        'fisher*magnitude'
        >>> make_selector("taylor @ separable:0.25").name
        'taylor@separable:0.25'
    """
    scorer, at, column_filter = expression.partition("@")
    if not at:
        return _product(scorer)
    name, colon, share = column_filter.rpartition(":")
    if not colon:
        raise UsageError(f"selector '{expression}' lacks the share of columns to keep; write {expression.strip()}:0.25")
    try:
        fraction = float(share)
    except ValueError:
        raise UsageError(f"selector '{expression}': the share of columns must be a number, got '{share}'") from None
    return PrefilterSelector(_product(scorer), column_filter=_product(name), share=fraction)


def _product(expression: str) -> MaskSelector:
    parts = [_named(name.strip()) for name in expression.split("*")]
    return parts[0] if len(parts) == 1 else ProductSelector(parts)


def _named(name: str) -> MaskSelector:
    table = selector_table()
    if name not in table:
        raise UsageError(f"unknown selector '{name}'{did_you_mean(name, table)}")
    return table[name]()
