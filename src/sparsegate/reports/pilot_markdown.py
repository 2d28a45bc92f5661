"""A pilot as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sparsegate.reports.pilot import PilotResult
from sparsegate.reports.pilot_arm import ArmResult
from sparsegate.reports.pilot_evidence import assumption_lines
from sparsegate.reports.pilot_lines import ARM_COLUMNS, answer_line, arm_row, reason_lines
from sparsegate.reports.pilot_words import Words
from sparsegate.reports.wording import number, why


def pilot_markdown(result: PilotResult) -> str:
    """Return the answer, its reasons, and every table."""
    data, words = result.data, Words("en", result)
    lines = [
        f"# Pilot {result.name}",
        "",
        f"**{_cell(answer_line(result))}**",
        "",
        *(f"- {_cell(line)}" for line in reason_lines(result)),
        "",
        f"{data.source}: {len(data.labels)} labels, {data.evaluation} evaluation and {data.validation} validation "
        f"samples, {data.red_team} red-team and {data.benign} benign prompts; seeds {', '.join(map(str, result.seeds))}"
        f"; base model {result.base_model}; policy {result.policy_name}; {result.created_at}.",
        "",
        "## Arms",
        "",
        *_table(ARM_COLUMNS, [arm_row(arm, words) for arm in result.arms]),
        "",
        "## Learning curve: accuracy",
        "",
        *_curve(result, words),
    ]
    if result.prices:
        rows = [
            (
                arm.name,
                cost.device,
                number(cost.seconds),
                number(cost.money),
                number(cost.money_per_year),
                cost.currency,
            )
            for arm in result.arms
            for cost in arm.costs
        ]
        lines += ["", "## Costs", "", *_table(("arm", "device", "seconds", "one training", "a year", "in"), rows)]
    if result.projections:
        fits = [
            (fit.model, fit.arm, words.size(fit.memory_bytes), fit.device or words.say("too_large"))
            for fit in result.projections
        ]
        lines += ["", "## Larger models", "", *_table(("model", "arm", "memory", "smallest device"), fits)]
    lines += ["", "What these figures rest on:", "", *(f"- {_cell(line)}" for line in assumption_lines(result, words))]
    for arm in result.arms:
        if arm.verdict is not None:
            lines += ["", f"## {arm.name}", "", *_arm(arm)]
    return "\n".join(lines) + "\n"


def _curve(result: PilotResult, words: Words) -> list[str]:
    sizes = sorted({point.size for arm in result.arms for point in arm.points})
    rows = []
    for arm in result.arms:
        points = {point.size: words.mean(point.accuracy) for point in arm.points}
        rows.append((arm.name, *(points.get(size, "-") for size in sizes)))
    return _table(("arm", *(str(size) for size in sizes)), rows)


def _arm(arm: ArmResult) -> list[str]:
    gates = [(gate.gate, str(gate.verdict), why(gate)) for gate in arm.gates]
    lines = _table(("gate", "verdict", "why"), gates)
    rates = [
        (rate.fault, rate.category or "all", f"{rate.base_count}/{rate.n}", f"{rate.count}/{rate.n}",
         f"[{rate.interval.low:.3f}, {rate.interval.high:.3f}]")
        for rate in arm.safety
    ]  # fmt: skip
    if rates:
        lines += ["", *_table(("counts as", "category", "base model", "arm", "95% interval"), rates)]
    changed = [
        ("better" if one.better else "worse", one.id, one.prompt, one.expected, one.base, one.arm)
        for one in arm.changed
    ]
    if changed:
        lines += ["", *_table(("changed", "id", "message", "expected", "base model", "arm"), changed)]
    return lines


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(_cell(text) for text in row) + " |" for row in rows]


def _cell(text: str) -> str:
    """Keep a text on one line and inside its cell."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
