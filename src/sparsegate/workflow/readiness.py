"""Whether each gate can pass at the sizes at hand: for ``sparsegate validate``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sparsegate.contracts import JSON
from sparsegate.data import source_of
from sparsegate.workflow.inputs import Inputs
from sparsegate_gates.lint import Need, Sizes, lint
from sparsegate_gates.policy import Policy

if TYPE_CHECKING:
    from rich.table import Table


def needs_of(policy: Policy, inputs: Inputs) -> dict[str, list[Need]]:
    """Return what each gate of the policy asks for, beside what the run has."""
    sizes = Sizes.of(
        train=inputs.train,
        evaluation=inputs.evaluation,
        red_team=len({source_of(prompt.id) for prompt in inputs.red_team}),
        benign=len(inputs.benign),
        canaries=inputs.canaries,
        by_label=bool(inputs.labels),
        general=len(inputs.general),
    )
    return lint(policy, sizes)


def shortages(needs: Mapping[str, list[Need]]) -> list[str]:
    """Return one line for each question that can't be passed."""
    lines: list[str] = []
    for gate, asked in needs.items():
        for need in asked:
            if need.needed is None:
                lines.append(f"{gate}, {need.question}: no number of items is enough; loosen the bound in the policy")
            elif need.lacks:
                lines.append(
                    f"{gate}, {need.question}: lacks {need.lacks} {need.items} items ({need.has} of {need.needed})"
                )
    return lines


def needs_to_json(needs: Mapping[str, list[Need]]) -> dict[str, JSON]:
    """Return the rows of the table for machines."""
    return {gate: [need.to_json() for need in asked] for gate, asked in needs.items()}


def needs_table(needs: Mapping[str, list[Need]]) -> Table:
    """Return the table for a terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("gate", "question", "items", "has", "needs", "can pass", "worst that passes"):
        table.add_column(name, justify="right" if name in ("has", "needs") else "left")
    for gate, asked in needs.items():
        for need in asked:
            needed = "-" if need.needed is None else str(need.needed)
            can_pass = Text("yes", style="green") if need.can_pass else Text("no", style="bold red")
            texts = (gate, need.question, need.items, str(need.has), needed)
            table.add_row(*map(Text, texts), can_pass, Text(need.worst or "-"))
        if not asked:
            table.add_row(Text(gate), Text("counts no items"), "-", "-", "-", "-", "-")
    return table
