"""Did training, and does the result, cost little enough?

Each bound is asked only where the policy sets it, and at least two must be set. Full fine-tuning is counted as 16
bytes for each parameter of the model: fp32 value, gradient and the two moments of Adam, 4 bytes each.

Of a model that was trained elsewhere only its size is known. A bound on what training took is then INSUFFICIENT, since
what was not measured is not small; a policy that is about such models says ``unmeasured: report`` and has it named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Literal

from sparsegate.contracts import Check, CostReport, GateContext, GateResult, Verdict
from sparsegate.errors import DataError
from sparsegate.files import read_json, sha256_file
from sparsegate_gates.rules import at_least, collect, given, positive

FULL_FINE_TUNING_BYTES_PER_PARAMETER = 16
_OVER_CHAMPION: Mapping[str, tuple[str, Callable[[CostReport], float]]] = {
    "max_train_seconds_over_champion": ("training time / champion", lambda cost: cost.train_seconds),
    "max_token_seconds_over_champion": ("time of a token / champion", lambda cost: 1 / cost.tokens_per_second),
}


@dataclass(frozen=True)
class CostSettings:
    """Bounds of the cost gate; None does not ask.

    Args:
        reason: Why these bounds, and when they were chosen.
        max_peak_memory_bytes: Peak memory of training.
        max_train_seconds: Wall-clock time of training.
        max_artifact_fraction: Size of the delta file as a share of the base model's weights.
        max_trainable_state_fraction: Bytes of trained values, gradients and moments as a share of full fine-tuning's.
        max_latency_ratio: Candidate's seconds for one item over the base's.
        latency_minimum_n: Items behind the latency.
        max_train_seconds_over_champion: Training time over the champion's; not asked where the champion left no cost.
        max_token_seconds_over_champion: The same for a token trained on, so that more data may take more time.
        unmeasured: What a bound does that can't be judged because the model was trained elsewhere: ``block`` makes it
            INSUFFICIENT, ``report`` names it.
    """

    reason: str
    max_peak_memory_bytes: int | None = None
    max_train_seconds: float | None = None
    max_artifact_fraction: float | None = None
    max_trainable_state_fraction: float | None = None
    max_latency_ratio: float | None = None
    latency_minimum_n: int = 30
    max_train_seconds_over_champion: float | None = None
    max_token_seconds_over_champion: float | None = None
    unmeasured: Literal["block", "report"] = "block"

    def problems(self) -> dict[str, str]:
        bounds = {
            entry.name: getattr(self, entry.name)
            for entry in fields(self)
            if entry.name.startswith("max_") and entry.name not in _OVER_CHAMPION
        }
        found = collect(
            reason=given("reason", self.reason),
            latency_minimum_n=at_least("latency_minimum_n", self.latency_minimum_n, 1),
            **{name: positive(name, getattr(self, name)) for name in (*bounds, *_OVER_CHAMPION)},
        )
        if sum(bound is not None for bound in bounds.values()) < 2:
            found["bounds"] = f"bounds must be set, at least two of: {', '.join(sorted(bounds))}"
        return found


class Cost:
    """Judges the measured cost of the run."""

    name = "cost"
    settings: type = CostSettings
    stage: Literal["data", "model"] = "model"

    def run(self, context: GateContext) -> GateResult:
        settings: CostSettings = context.settings
        if context.has("size") and not context.has("cost"):
            return self._judge_size(context, settings)
        cost = _read_cost(context, "cost")
        full_bytes = FULL_FINE_TUNING_BYTES_PER_PARAMETER * cost.total_parameters
        asked: list[tuple[str, float | None, Callable[[], float]]] = [
            ("peak memory (bytes)", settings.max_peak_memory_bytes, lambda: cost.peak_memory_bytes),
            ("training time (s)", settings.max_train_seconds, lambda: cost.train_seconds),
            ("artifact / base", settings.max_artifact_fraction, lambda: cost.artifact_bytes / cost.base_bytes),
            (
                "trainable state / full fine-tuning",
                settings.max_trainable_state_fraction,
                lambda: cost.trainable_state_bytes / full_bytes,
            ),
        ]
        checks = [Check.at_most(name, measure(), bound, n=1) for name, bound, measure in asked if bound is not None]
        if settings.max_latency_ratio is not None:
            checks.append(_latency_check(context, settings.max_latency_ratio, settings.latency_minimum_n))
        not_asked: list[str] = []
        for setting, (name, of) in _OVER_CHAMPION.items():
            bound = getattr(settings, setting)
            if bound is None:
                continue
            if context.has("cost.champion"):
                ratio = of(cost) / of(_read_cost(context, "cost.champion"))
                checks.append(Check.at_most(name, ratio, bound, n=1))
            else:
                not_asked.append(f"{name}: the champion left no cost file")
        return GateResult(
            gate=self.name,
            checks=tuple(checks),
            method="measured on this run; full fine-tuning counted as 16 bytes for each parameter (fp32, Adam)",
            items_sha256=sha256_file(context.path("cost")),
            details={"method": cost.method, "device": cost.device, "steps": cost.steps, "not_judged": not_asked},
        )

    def _judge_size(self, context: GateContext, settings: CostSettings) -> GateResult:
        path = context.path("size")
        size = read_json(path)
        _require_positive(path.name, {name: size.get(name) for name in ("artifact_bytes", "base_bytes")})
        checks, not_judged = [], []
        for entry in fields(settings):
            bound = getattr(settings, entry.name)
            if not entry.name.startswith("max_") or bound is None:
                continue
            if entry.name == "max_artifact_fraction":
                checks.append(Check.at_most("artifact / base", size["artifact_bytes"] / size["base_bytes"], bound, n=1))
            elif settings.unmeasured == "block":
                why = "not known of a model trained elsewhere; a policy with 'unmeasured: report' goes without it"
                checks.append(Check(entry.name, Verdict.INSUFFICIENT, reason=why))
            else:
                not_judged.append(f"{entry.name}: not known of a model trained elsewhere")
        return GateResult(
            gate=self.name,
            checks=tuple(checks),
            method="bytes of the weight files over those of the base",
            items_sha256=sha256_file(path),
            details={"not_judged": not_judged},
        )


def _read_cost(context: GateContext, name: str) -> CostReport:
    """Read a cost file; a figure that was not measured is not a small cost.

    Raises:
        DataError: If it is not a cost report, or a figure is not positive and finite.
    """
    path = context.path(name)
    data = read_json(path)
    try:
        cost = CostReport(**data)
    except TypeError as error:
        raise DataError(f"{path.name} is not a cost report: {error}") from None
    _require_positive(
        path.name,
        {
            name: getattr(cost, name)
            for name in (
                "train_seconds",
                "tokens_per_second",
                "peak_memory_bytes",
                "total_parameters",
                "trainable_state_bytes",
                "artifact_bytes",
                "base_bytes",
            )
        },
    )
    return cost


def _latency_check(context: GateContext, bound: float, minimum_n: int) -> Check:
    path = context.path("latency")
    data = read_json(path)
    names = ("candidate_seconds_per_item", "base_seconds_per_item", "n")
    if not isinstance(data, Mapping) or not all(name in data for name in names):
        raise DataError(f"{path.name} must hold {', '.join(names)}")
    _require_positive(path.name, {name: data[name] for name in names})
    ratio = data["candidate_seconds_per_item"] / data["base_seconds_per_item"]
    return Check.at_most("latency / base", ratio, bound, n=int(data["n"]), minimum_n=minimum_n)


def _require_positive(file: str, figures: Mapping[str, object]) -> None:
    for name, value in figures.items():
        sound = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
        if not sound:
            raise DataError(f"{file}: {name} must be measured, a finite number above 0, got {value!r}")
