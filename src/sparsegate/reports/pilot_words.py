"""A pilot in words of any of the page's languages: figures, arms, targets and reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Literal

import yaml

from sparsegate.reports.pilot import PilotResult
from sparsegate.reports.pilot_arm import ArmResult, Mean, SizePoint
from sparsegate.reports.pilot_verdict import Reason, TargetCheck
from sparsegate.reports.wording import number

Language = Literal["en", "ja"]
WORDING_FILE = "pilot_wording.yaml"
_SHARES = ("accuracy", "harmful_rate", "over_refusal_rate")
_MINUTES, _HOURS = 120, 7200  # seconds from which on a time is told in these


@cache
def texts() -> Mapping[str, Mapping[str, str]]:
    """Return every text by its key, then by its language."""
    text = files(__package__).joinpath(WORDING_FILE).read_text(encoding="utf-8")
    found: dict[str, dict[str, str]] = yaml.safe_load(text)
    return found


class Words:
    """The words of one language.

    Args:
        language: The language.
        result: The pilot that is told of.
    """

    def __init__(self, language: Language, result: PilotResult) -> None:
        self.language = language
        self._currency = result.prices[0].currency if result.prices else ""
        told = {arm.name: self._name_arm(arm) for arm in result.arms}
        shared = Counter(told.values())
        self._arms = {name: text if shared[text] == 1 else f"{text} ({name})" for name, text in told.items()}

    def say(self, key: str, **figures: object) -> str:
        """Return a text, its figures filled in."""
        return texts()[key][self.language].format(**figures)

    # --- figures ---

    def seconds(self, value: float) -> str:
        """Return a time in the unit that people would take."""
        if value >= _HOURS:
            return self.say("hours", value=f"{value / 3600:.1f}")
        if value >= _MINUTES:
            return self.say("minutes", value=f"{value / 60:.1f}")
        return self.say("in_seconds", value=number(value))

    def size(self, num_bytes: float) -> str:
        """Return a size in GB or MB."""
        if num_bytes < 1e9:
            return f"{num_bytes / 1e6:.1f} MB"
        return f"{num_bytes / 1e9:.2f} GB" if num_bytes < 1e10 else f"{num_bytes / 1e9:.1f} GB"

    def parameters(self, count: int) -> str:
        """Return a number of parameters."""
        return self.say("parameters", count=f"{count / 1e9:.1f}")

    def mean(self, value: Mean) -> str:
        """Return a mean with its interval over seeds."""
        ends = value.interval
        return f"{value.mean:.3f}" if ends is None else f"{value.mean:.3f} [{ends.low:.3f}, {ends.high:.3f}]"

    def in_unit(self, target: str, value: float) -> str:
        """Return a figure in a target's unit."""
        if target in _SHARES:
            return f"{value:.3f}"
        if target == "seconds":
            return self.seconds(value)
        return f"{value:.2f} GB" if target == "peak_memory_gb" else f"{number(value)} {self._currency}".rstrip()

    # --- arms, targets, reasons ---

    def arm(self, name: str) -> str:
        """Return an arm's name for people."""
        return self._arms.get(name, name)

    def _name_arm(self, arm: ArmResult) -> str:
        if arm.support is None or arm.density is None:
            return self.say(arm.method) if arm.method in texts() else arm.name
        told = self.say("ours", support=self.say(arm.support), density=f"{100 * arm.density:g}%")
        if arm.cut == "auto":
            return told + self.say("ours_auto")
        return told + self.say("ours_cut", cut=f"{arm.cut:.0%}") if arm.cut else told

    def goal(self, check: TargetCheck) -> str:
        """Return a target's bound."""
        return self.say(check.direction, goal=self.in_unit(check.target, check.goal))

    def observed(self, check: TargetCheck) -> str:
        """Return a target's measured figure with its interval."""
        if check.observed is None:
            return self.say("not_measured")
        ends = check.interval
        told = self.in_unit(check.target, check.observed)
        return told if ends is None else f"{told} [{ends.low:.3f}, {ends.high:.3f}]"

    def reason(self, reason: Reason) -> str:
        """Return a reason, without the arm that it is about."""
        raw = dict(reason.figures)
        told = {name: self._figure(name, value) for name, value in raw.items()}
        if reason.code.startswith("target_"):
            target = str(raw["target"])
            low, high, observed = raw.get("low"), raw.get("high"), raw.get("observed")
            measured = self.say("not_measured")
            if isinstance(observed, int | float):
                measured = self.in_unit(target, observed)
            if isinstance(low, int | float) and isinstance(high, int | float):
                measured += f" [{low:.3f}, {high:.3f}]"
            goal = raw["goal"]
            assert isinstance(goal, int | float)
            told |= {"target": self.say(target), "measured": measured, "goal": self.in_unit(target, goal)}
        return self.say(reason.code, **told)

    def _figure(self, name: str, value: float | str | None) -> str:
        if value is None:
            return self.say("not_measured")
        if name == "by":
            return self.arm(str(value))
        return value if isinstance(value, str) else number(value)

    def savings(self, point: SizePoint, reference: ArmResult | None) -> str:
        """Return what a point saves beside the reference; empty where they can't be compared."""
        if reference is None or reference.last is None or reference.last.size != point.size or reference.last is point:
            return ""
        return self.say(
            "savings",
            time=f"{point.seconds / reference.last.seconds:.0%}",
            memory=f"{point.peak_memory_bytes / reference.last.peak_memory_bytes:.0%}",
            reference=self.arm(reference.name),
        )

    def answer(self, result: PilotResult) -> str:
        """Return what to do, in a sentence: the recommended arm with its figures, or that there is none."""
        chosen = result.recommended
        if chosen is None or chosen.last is None:
            return self.say(f"no_answer_{result.verdict.value}")
        point = chosen.last
        return self.say(
            "answer",
            arm=self.arm(chosen.name),
            accuracy=self.mean(point.accuracy),
            seconds=self.seconds(point.seconds),
            memory=self.size(point.peak_memory_bytes),
            savings=self.savings(point, result.arm(result.reference)),
        )
