"""The gates: questions about a model that must be answered with evidence before it is registered.

To add one: a file here with a settings class and a gate class, one line in the table, a block in a policy, and its
test. Other packages add theirs by the entry point group ``sparsegate.gates``.
"""

from __future__ import annotations

from collections.abc import Iterable

from sparsegate.contracts import Gate
from sparsegate_gates.accuracy import Accuracy
from sparsegate_gates.cost import Cost
from sparsegate_gates.data_quality import DataQuality
from sparsegate_gates.harmful_output import HarmfulOutput
from sparsegate_gates.integrity import Integrity
from sparsegate_gates.likelihood import Likelihood
from sparsegate_gates.over_refusal import OverRefusal
from sparsegate_gates.plugins import with_plugins
from sparsegate_gates.regression import Regression

__all__ = ["GATES", "all_gates", "table"]


def table(gates: Iterable[type[Gate]]) -> dict[str, type[Gate]]:
    """Return gates by name, in order.

    Raises:
        ValueError: If two have one name.
    """
    found: dict[str, type[Gate]] = {}
    for gate in gates:
        if gate.name in found:
            raise ValueError(f"two gates are called '{gate.name}': {found[gate.name].__name__} and {gate.__name__}")
        found[gate.name] = gate
    return found


GATES = table([DataQuality, Integrity, Accuracy, Likelihood, Regression, HarmfulOutput, OverRefusal, Cost])


def all_gates() -> dict[str, type[Gate]]:
    """Return the built-in gates and those of installed packages.

    Raises:
        ConfigError: If a name is taken or a package's gate can't be loaded.
    """
    return with_plugins(GATES, group="sparsegate.gates", kind="gate")
