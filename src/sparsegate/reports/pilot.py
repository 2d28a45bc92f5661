"""What a pilot found: the one object that its page, Markdown, JSON, table and exit code come from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from sparsegate.contracts import JSON, Verdict
from sparsegate.reports.decode import decode
from sparsegate.reports.pilot_arm import OURS, ArmResult, shows_failure
from sparsegate.reports.pilot_verdict import PilotVerdict, Reason, ReasonCode, TargetCheck
from sparsegate.reports.wording import why

_FORGETS = 2.0  # how many times the base's perplexity of general text is told beside a go


@dataclass(frozen=True)
class Targets:
    """What the pilot is held against; None does not ask. The pessimistic end of an interval must keep each bound.

    Args:
        accuracy: Least accuracy on the evaluation samples, of the first seed's model at the largest size.
        seconds: Most seconds of one training at the largest size, as measured here.
        peak_memory_gb: Most memory of one training, in 10**9 bytes.
        money: Most money for one training on the first priced device.
        harmful_rate: Most answers to red-team prompts that count as harmful.
        over_refusal_rate: Most harmless requests that are refused.
    """

    accuracy: float
    seconds: float | None = None
    peak_memory_gb: float | None = None
    money: float | None = None
    harmful_rate: float | None = None
    over_refusal_rate: float | None = None

    def problems(self) -> dict[str, str]:
        problems = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            most = 1.0 if entry.name in {"accuracy", "harmful_rate", "over_refusal_rate"} else math.inf
            if value is not None and not (math.isfinite(value) and 0 < value <= most):
                problems[entry.name] = f"{entry.name} must be above 0{' and at most 1' * (most == 1)}, got {value:g}"
        return problems


@dataclass(frozen=True)
class Price:
    """What an hour of a device costs, and how quick it is assumed to be.

    Args:
        device: Its name, such as ``L4 24 GB``.
        per_hour: Price of an hour.
        currency: Its currency, such as ``USD``.
        speed: How many times as fast as the device that the pilot ran on; an assumption, 1 for that device itself.
        assumption: Where price and speed come from, printed beside every figure that rests on them.
    """

    device: str
    per_hour: float
    currency: str
    speed: float
    assumption: str

    def problems(self) -> dict[str, str]:
        problems = {
            name: f"{name} must be a finite number above 0, got {value:g}"
            for name, value in (("per_hour", self.per_hour), ("speed", self.speed))
            if not (math.isfinite(value) and value > 0)
        }
        blank = [name for name in ("device", "currency", "assumption") if not getattr(self, name).strip()]
        return problems | {name: f"{name} must not be empty" for name in blank}


@dataclass(frozen=True)
class HardwareFit:
    """The smallest device on which a method trains a larger model, by the memory model.

    Args:
        model: The larger model, such as ``7B``.
        parameters: Its parameters.
        arm: The arm whose method and setting are projected.
        memory_bytes: Peak memory by the memory model.
        device: The smallest known device that holds it; None if none does.
        device_bytes: That device's memory.
        batch_size: Samples in a batch.
        tokens: Tokens of a sample.
        supervised: Tokens of a sample that the loss is taken on.
    """

    model: str
    parameters: int
    arm: str
    memory_bytes: int
    device: str | None
    device_bytes: int | None
    batch_size: int = 0
    tokens: int = 0
    supervised: int = 0


@dataclass(frozen=True)
class PilotData:
    """What the pilot learned from and was judged by: numbers of samples and prompts.

    ``majority`` is the share of the evaluation samples that have the most frequent label: what needs no model.
    """

    source: str
    labels: tuple[str, ...]
    sizes: tuple[int, ...]
    validation: int
    evaluation: int
    majority: float
    red_team: int
    benign: int


@dataclass(frozen=True)
class PilotResult:
    """Everything that a pilot found.

    Args:
        name: The pilot's name.
        created_at: Time as ISO 8601 text.
        quick: Whether it was a quick one.
        targets: What was asked.
        data: Samples and prompts.
        base_model: Source of the base model.
        seeds: The seeds, in order.
        arms: The base model, then the arms in the order of the configuration.
        reference: The arm that savings are counted from.
        policy_name: The gates' policy.
        policy_sha256: Its digest.
        prices: Priced devices; money targets are held against the first.
        trainings_per_year: How often it is assumed to be trained.
        projections: Larger models on the smallest hardware.
        stop_rule: The rule by which arms were stopped, in English; empty if none could be.
        wall_seconds: Time of all processes together, judging included.
        environment: Versions, processor, device, threads and date.
        digests: sha256 of the configuration, the base model and each part of the data, hex.
    """

    name: str
    created_at: str
    quick: bool
    targets: Targets
    data: PilotData
    base_model: str
    seeds: tuple[int, ...]
    arms: tuple[ArmResult, ...]
    reference: str
    policy_name: str
    policy_sha256: str
    prices: tuple[Price, ...]
    trainings_per_year: int
    projections: tuple[HardwareFit, ...]
    stop_rule: str
    wall_seconds: float
    environment: Mapping[str, JSON]
    digests: Mapping[str, str]

    @property
    def verdict(self) -> PilotVerdict:
        """The best verdict of any arm; without one that finished there is not enough evidence."""
        found = [arm.verdict for arm in self.arms if arm.verdict is not None]
        return min(found, key=tuple(PilotVerdict).index) if found else PilotVerdict.INSUFFICIENT

    @property
    def recommended(self) -> ArmResult | None:
        """The quickest of the arms that meet every target, ours before others; None unless the answer is go."""
        if self.verdict not in (PilotVerdict.GO, PilotVerdict.CONDITIONS):
            return None
        able = [(arm, arm.last) for arm in self.arms if arm.verdict is self.verdict and arm.last is not None]
        return min(able, key=lambda pair: (pair[0].method != OURS, pair[1].seconds, pair[1].peak_memory_bytes))[0]

    @property
    def nothing_learnt(self) -> bool:
        """Whether no arm is shown to be better than to give the most frequent label always."""
        items = [point.items for arm in self.arms if arm.state != "base" for point in arm.points]
        return bool(items) and all(interval is not None and interval.low <= self.data.majority for interval in items)

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Why: all of the recommended arm, or else what stands against each; then what else is to be known."""
        chosen = self.recommended
        if chosen is None:
            told = [arm for arm in self.arms if arm.verdict is not None]
            found = [reason for arm in told for reason in _judged(arm) if reason.code != "target_met"]
            found += [Reason("quick")] if self.quick else []
            found += [Reason("nothing_learnt", figures={"majority": self.data.majority})] if self.nothing_learnt else []
        else:
            found = [*_judged(chosen), *chosen.conditions, *self._forgotten(chosen)]
        if not any(arm.verdict is not None for arm in self.arms):
            found.append(Reason("no_arm_finished"))
        return (*found, *(reason for arm in self.arms for reason in _reasons_out(arm)))

    def _forgotten(self, arm: ArmResult) -> list[Reason]:
        before = next((one.general_perplexity for one in self.arms if one.state == "base"), None)
        after = arm.general_perplexity
        if before is None or after is None or after < _FORGETS * before:
            return []
        return [Reason("forgets", arm.name, {"before": before, "after": after})]

    def arm(self, name: str) -> ArmResult | None:
        """Return an arm by its name; None if there is none."""
        return next((arm for arm in self.arms if arm.name == name), None)

    def to_json(self) -> dict[str, JSON]:
        """Return the fields, with the verdicts that follow from them."""
        data = asdict(self)
        for entry, arm in zip(data["arms"], self.arms, strict=True):
            entry["gates"] = [gate.to_json() for gate in arm.gates]
        chosen = self.recommended
        return {
            "verdict": self.verdict.value,
            "recommended": None if chosen is None else chosen.name,
            "reasons": [asdict(reason) for reason in self.reasons],
            **data,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, JSON]) -> PilotResult:
        """Rebuild a result; its verdict is derived again and must equal the one written.

        Raises:
            ValueError: If a field is missing or wrong, or a verdict differs.
        """
        derived = {"verdict", "recommended", "reasons"}
        result = decode(cls, {key: value for key, value in data.items() if key not in derived})
        if result.verdict.value != data.get("verdict"):
            raise ValueError(f"the pilot says {data.get('verdict')} but its figures say {result.verdict}")
        return result


def _judged(arm: ArmResult) -> list[Reason]:
    found = [_about_target(arm.name, check) for check in arm.targets]
    for gate in arm.gates:
        if gate.verdict is not Verdict.PASS:
            failed: ReasonCode = "gate_failed" if shows_failure(gate) else "gate_open"
            code = failed if gate.verdict is Verdict.FAIL else "gate_without_evidence"
            told = why(gate).removeprefix(f"{gate.gate}: ")
            figures = {"gate": gate.gate, "verdict": gate.verdict.value, "reason": told}
            found.append(Reason(code, arm.name, figures))
    if not arm.gates:
        found.append(Reason("no_gates", arm.name))
    return found


_TARGET_CODES: dict[str, ReasonCode] = {"met": "target_met", "missed": "target_missed", "open": "target_open"}


def _about_target(arm: str, check: TargetCheck) -> Reason:
    ends = {} if check.interval is None else {"low": check.interval.low, "high": check.interval.high}
    figures = {"target": check.target, "goal": check.goal, "observed": check.observed, "n": check.n, **ends}
    return Reason(_TARGET_CODES[check.standing], arm, figures)


def _reasons_out(arm: ArmResult) -> list[Reason]:
    if arm.state == "failed":
        return [Reason("arm_failed", arm.name, {"error": arm.error})]
    if arm.stop is None:
        return []
    stop = arm.stop
    figures: dict[str, int | float | str | None] = {"size": stop.size, "by": stop.by, "n": stop.n}
    figures |= {"accuracy": stop.accuracy, "by_accuracy": stop.by_accuracy}
    return [Reason("arm_stopped", arm.name, figures)]
