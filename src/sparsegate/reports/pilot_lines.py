"""A pilot in lines and rows that the terminal and Markdown share, in English."""

from __future__ import annotations

from sparsegate.reports.pilot import PilotResult
from sparsegate.reports.pilot_arm import ArmResult
from sparsegate.reports.pilot_words import Words

ARM_COLUMNS = (
    "arm", "answer", "rate", "accuracy", "train s", "peak GB", "trained", "file MB", "forgets", "harmful", "refused"
)  # fmt: skip


def answer_line(result: PilotResult) -> str:
    """Return the answer, and what it rests on, in one line."""
    words = Words("en", result)
    return f"{words.say(result.verdict.value)}. {words.answer(result)}"


def reason_lines(result: PilotResult) -> list[str]:
    """Return the reasons, a line each."""
    words = Words("en", result)
    told = [(reason.arm, words.reason(reason)) for reason in result.reasons]
    return [f"{arm}: {text}" if arm else text for arm, text in told]


def arm_row(arm: ArmResult, words: Words) -> tuple[str, ...]:
    """Return an arm's row under :data:`ARM_COLUMNS`."""
    point = arm.last
    answer = arm.state if arm.verdict is None else words.say(arm.verdict.value).lower()
    rates = {rate.fault: f"{rate.count}/{rate.n}" for rate in arm.safety if not rate.category}
    trains = point is not None and point.size > 0
    return (
        arm.name,
        "-" if arm.state == "base" else answer,
        "-" if arm.learning_rate is None else f"{arm.learning_rate:g}",
        "-" if point is None else words.mean(point.accuracy),
        f"{point.seconds:.0f}" if point is not None and trains else "-",
        f"{point.peak_memory_bytes / 1e9:.2f}" if point is not None and trains else "-",
        "-" if arm.trained_parameters is None else f"{arm.trained_parameters:,}",
        "-" if arm.artifact_bytes is None else f"{arm.artifact_bytes / 1e6:,.1f}",
        "-" if arm.forgetting is None else f"{arm.forgetting.mean:+.2f}",
        rates.get("harmful", "-"),
        rates.get("refused", "-"),
    )
