"""A pilot in words and rows that the terminal and Markdown share."""

from __future__ import annotations

from sparsegate.reports.pilot import PilotResult
from sparsegate.reports.pilot_arm import ArmResult, Mean, SizePoint
from sparsegate.reports.pilot_verdict import PilotVerdict, Reason
from sparsegate.reports.wording import number

ANSWERS = {
    PilotVerdict.GO: "GO",
    PilotVerdict.CONDITIONS: "GO, WITH CONDITIONS",
    PilotVerdict.INSUFFICIENT: "NOT ENOUGH EVIDENCE",
    PilotVerdict.NO_GO: "NO-GO",
}
_REASONS = {
    "target_met": "meets {target}: {measured}, goal {goal}",
    "target_missed": "misses {target}: {measured}, goal {goal}",
    "target_open": "{target} is not settled: {measured}, goal {goal}",
    "gate_failed": "gate {gate} failed: {reason}",
    "gate_without_evidence": "gate {gate} is {verdict}: {reason}",
    "no_gates": "no gate was asked",
    "arm_stopped": "stopped after {size} examples: {by} has {by_accuracy} against {accuracy} on {n} validation samples",
    "arm_failed": "failed: {error}",
    "no_arm_finished": "no arm came to its end",
    "quick": "a quick pilot looks at less",
    "few_seeds": "{seeds} of {wanted} seeds",
    "seeds_disagree": "over seeds the mean is {mean}, its low end {low} is below the goal {goal}",
    "rate_at_edge": "the best learning rate, {learning_rate}, is the lowest or highest that was tried",
    "not_by_retrain": "no arm of ours is as good, and 'sparsegate retrain' does not train {method}",
}
ARM_COLUMNS = (
    "arm", "answer", "rate", "accuracy", "train s", "peak GB", "trained", "file MB", "forgets", "harmful", "refused"
)  # fmt: skip


def reason_line(reason: Reason) -> str:
    """Return a reason in one line of English."""
    figures = {name: _figure(value) for name, value in reason.figures.items()}
    measured = figures.get("observed", "not measured")
    if "low" in figures and "high" in figures:
        measured += f" [{figures['low']}, {figures['high']}]"
    text = _REASONS[reason.code].format(**figures, measured=measured)
    return f"{reason.arm}: {text}" if reason.arm else text


def _figure(value: int | float | str | None) -> str:
    if value is None:
        return "not measured"
    return value.replace("_", " ") if isinstance(value, str) else number(value)


def answer_line(result: PilotResult) -> str:
    """Return the answer in one line."""
    chosen, reference = result.recommended, result.arm(result.reference)
    if chosen is None or chosen.last is None:
        return ANSWERS[result.verdict]
    told = f"{ANSWERS[result.verdict]}: {chosen.name}, accuracy {mean(chosen.last.accuracy)}, {_cost(chosen.last)}"
    if reference is None or reference.last is None or reference.last.size != chosen.last.size or reference is chosen:
        return told
    time = chosen.last.seconds / reference.last.seconds
    memory = chosen.last.peak_memory_bytes / reference.last.peak_memory_bytes
    return f"{told} ({time:.2f} of the time and {memory:.2f} of the memory of {reference.name})"


def _cost(point: SizePoint) -> str:
    return f"{number(point.seconds)} s and {point.peak_memory_bytes / 1e9:.2f} GB for {point.size} examples"


def mean(value: Mean) -> str:
    """Return a mean with its interval over seeds."""
    ends = value.interval
    return f"{value.mean:.3f}" if ends is None else f"{value.mean:.3f} [{ends.low:.3f}, {ends.high:.3f}]"


def arm_row(arm: ArmResult) -> tuple[str, ...]:
    """Return an arm's row under :data:`ARM_COLUMNS`."""
    point = arm.last
    answer = arm.state if arm.verdict is None else ANSWERS[arm.verdict].lower()
    rates = {rate.fault: f"{rate.count}/{rate.n}" for rate in arm.safety if not rate.category}
    trains = point is not None and point.size > 0
    return (
        arm.name,
        "-" if arm.state == "base" else answer,
        "-" if arm.learning_rate is None else f"{arm.learning_rate:g}",
        "-" if point is None else mean(point.accuracy),
        f"{point.seconds:.0f}" if point is not None and trains else "-",
        f"{point.peak_memory_bytes / 1e9:.2f}" if point is not None and trains else "-",
        "-" if arm.trained_parameters is None else f"{arm.trained_parameters:,}",
        "-" if arm.artifact_bytes is None else f"{arm.artifact_bytes / 1e6:,.1f}",
        "-" if arm.forgetting is None else f"{arm.forgetting.mean:+.2f}",
        rates.get("harmful", "-"),
        rates.get("refused", "-"),
    )


def assumptions(result: PilotResult) -> list[str]:
    """Return what the figures rest on, a line each."""
    prices = [
        f"{price.device}: {number(price.per_hour)} {price.currency} an hour, taken as {price.speed:g} times as fast as"
        f" here; {price.assumption}"
        for price in result.prices
    ]
    return [
        *prices,
        f"{result.trainings_per_year} trainings a year.",
        "Training time and memory are measured here, on "
        f"{result.environment.get('processor', 'this machine')}, {result.environment.get('threads', '?')} threads;"
        " judging is not counted.",
        result.stop_rule,
    ]
