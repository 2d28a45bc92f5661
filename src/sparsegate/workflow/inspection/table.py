"""What was found in a delta, for a terminal."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparsegate.workflow.inspection.result import Inspection, Part, WeightChange, join, relative_change

_LARGEST_CHANGES = 10
_OUTSIDE = "outside"


def print_inspection(found: Inspection, console: Console) -> None:
    """Print what a delta is, its mask, its largest changes, and what it shares with the other.

    Args:
        found: What was found.
        console: Where to; it decides on width and colours.
    """
    for name, value in facts(found).items():
        console.print(Text.assemble((f"{name:<10}", "bold"), value))
    mask, changes = _mask_table(found), _changes_table(found.largest_changes(_LARGEST_CHANGES))
    console.print("", Text("Share of each weight's entries that is trained", style="bold"), mask, sep="\n")
    console.print("", Text("Largest changes, over the trained entries before", style="bold"), changes, sep="\n")


def facts(found: Inspection) -> dict[str, str]:
    """Return what a delta is, how it was made and what it shares with the other, as lines of text."""
    whole = join(found.weights)
    supports = " and ".join(dict.fromkeys(f"{weight.support}s" for weight in found.weights))
    moved = sum(weight.moved for weight in found.weights)
    lines = {
        "delta": f"{found.path} ({found.file_bytes / 1e6:,.2f} MB)",
        "base": found.base_digest,
        "trains": f"{whole.trained:,} entries as {supports}, {_percent(whole.density)} of {len(found.weights)} weights;"
        f" {moved / whole.trained:.1%} of them moved",
        "change": f"{_relative(whole.relative_change)} of the trained entries before, {found.weights[0].dtype}",
    }
    if made := _made(found):
        lines["made by"] = made
    if found.overlap is not None:
        shared = found.overlap
        agreement = "-" if shared.sign_agreement is None else f"{shared.sign_agreement:.1%}"
        size = "-" if shared.relative_size is None else f"{shared.relative_size:.2f}"
        lines["against"] = (
            f"{found.against}: shares {shared.shared_entries:,} entries, {shared.share:.1%} of the smaller mask; "
            f"{agreement} of them move the same way; the other's change is {size} times as large"
        )
    return lines


def _made(found: Inspection) -> str:
    """Return what the manifest of a training run says; other deltas (such as combined ones) have another manifest."""
    training, plan = found.manifest.get("training"), found.manifest.get("plan")
    if not isinstance(training, dict) or not isinstance(plan, dict):
        return ""
    values = {
        "selector": training.get("selector"),
        "density": plan.get("density"),
        "layers from": plan.get("first_layer"),
        "learning rate": found.manifest.get("learning_rate"),
        "steps": found.manifest.get("steps"),
        "seed": training.get("seed"),
    }
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
        if value is not None
    )


def _mask_table(found: Inspection) -> Table:
    table = _table("layer")
    shown = short_names(found.modules)
    for module in found.modules:
        table.add_column(shown[module].replace("_", "_\n", 1), justify="right")
    for header in ("layer\ndensity", "entries", "change"):
        table.add_column(header, justify="right")
    expected = 0
    for layer in found.layers:
        if layer is not None and layer > expected:
            skipped = f"{expected}-{layer - 1}" if layer - 1 > expected else f"{expected}"
            table.add_row(skipped, *["-"] * (len(shown) + 3), style="dim")
        whole = found.part(layer=layer)
        assert whole is not None
        table.add_row(
            _OUTSIDE if layer is None else str(layer),
            *(_density(found.part(layer=layer, module=module)) for module in found.modules),
            _percent(whole.density),
            f"{whole.trained:,}",
            _relative(whole.relative_change),
        )
        expected = expected if layer is None else layer + 1
    return table


def _changes_table(weights: list[WeightChange]) -> Table:
    table = _table("weight")
    for header in ("change", "entries", "moved"):
        table.add_column(header, justify="right")
    for weight in weights:
        table.add_row(
            Text(weight.name),
            _relative(relative_change([weight])),
            f"{weight.trained:,}",
            f"{weight.moved / weight.trained:.1%}",
        )
    return table


def short_names(modules: list[str]) -> dict[str, str]:
    """Return each module's last name where that tells it apart from the others, else its whole name."""
    last = {module: module.rpartition(".")[2] for module in modules}
    count = Counter(last.values())
    return {module: name if count[name] == 1 else module for module, name in last.items()}


def _table(first: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(first, overflow="fold")
    return table


def _density(part: Part | None) -> str:
    return "-" if part is None else _percent(part.density)


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.1 else f"{share:.2%}"


def _relative(change: float | None) -> str:
    return "-" if change is None else f"{change:.3%}"
