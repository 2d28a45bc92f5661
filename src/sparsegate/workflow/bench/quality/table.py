"""A quality benchmark as tables for a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparsegate.workflow.bench.quality.summary import Estimate, MethodRow, QualityReport, SettingSummary
from sparsegate.workflow.bench.table import new_table


def print_quality(report: QualityReport, console: Console) -> None:
    """Print what each method reached on each data set, and what failed.

    Args:
        report: The report.
        console: Where to; it decides on width and colours.
    """
    config, environment = report.config, report.environment
    length = f"{config.epochs} epochs" if config.steps is None else f"{config.steps} steps"
    seeds = ", ".join(map(str, config.seeds))
    console.print(
        Text(
            f"{environment['model']}, {length} of batch {config.batch_size}, seeds {seeds}\n"
            f"{environment['processor']}, device {config.device}, threads {config.threads}, torch "
            f"{environment['torch']}; all processes together {report.wall_seconds / 60:.0f} min\n"
            "mean [95% interval by Student's t over seeds]; differences are paired by seed"
        )
    )
    for setting in report.settings:
        console.print(_heading(setting), _table(setting, config.reference), sep="\n")
    if len(report.settings) > 1 and report.overall:
        table = new_table(f"accuracy less {config.reference}'s")
        for method, difference in report.overall.items():
            table.add_row(method, _signed(difference, ".3f"))
        console.print(Text("\nmean over all classification data", style="bold"), table, sep="\n")
    if any(row.at_edge for setting in report.settings for row in setting.rows):
        console.print(Text("\n* the lowest or highest rate that was tried: a better one may lie beyond"))
    console.print()
    for failure in report.failures:
        console.print(Text.assemble(("failed ", "bold red"), failure))
    for missing in report.missing:
        console.print(Text.assemble(("no figures ", "bold red"), missing))


def _heading(setting: SettingSummary) -> Text:
    name = "accuracy" if setting.task == "classification" else "perplexity of the responses"
    base = "not measured" if setting.base_quality is None else f"{setting.base_quality:.3f}"
    return Text(f"\n{setting.data}, {setting.size} training examples; {name} of the base model {base}", style="bold")


def _table(setting: SettingSummary, reference: str) -> Table:
    name = "accuracy" if setting.task == "classification" else "perplexity"
    target = f"to {reference}'s\nlast, s"
    table = new_table("rate", name, f"less {reference}'s", "train\ns", target, "ratio", "peak\nMB", "forgets", "skills")
    for row in setting.rows:
        table.add_row(
            row.method,
            f"{row.learning_rate:g}{'*' if row.at_edge else ''}",
            _plain(row.quality),
            _signed(row.difference, ".3f"),
            f"{row.train_seconds:.0f}",
            _to_target(row),
            "-" if row.target_time_ratio is None else f"{row.target_time_ratio:.2f}",
            f"{row.peak_memory_bytes / 1e6:,.0f}",
            _signed(row.forgetting, ".2f"),
            _signed(row.skills_change, ".3f"),
        )
    return table


def _to_target(row: MethodRow) -> str:
    if row.target_seconds is None:
        return f"{row.reached} of {row.quality.n}"
    return f"{row.target_seconds:.0f}"


def _plain(value: Estimate) -> str:
    ends = value.interval
    return f"{value.mean:.3f}" if ends is None else f"{value.mean:.3f}\n[{ends.low:.3f}, {ends.high:.3f}]"


def _signed(value: Estimate | None, form: str) -> str:
    if value is None:
        return "-"
    ends = value.interval
    return (
        f"{value.mean:+{form}}" if ends is None else f"{value.mean:+{form}}\n[{ends.low:+{form}}, {ends.high:+{form}}]"
    )
