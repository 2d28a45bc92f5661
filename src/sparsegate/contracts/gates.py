"""Gates: what they may read, and what they answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from sparsegate.contracts.canonical import JSON
from sparsegate.contracts.samples import Task
from sparsegate.contracts.verdicts import Check, Interval, Verdict, worst
from sparsegate.errors import MissingEvidenceError


@dataclass(frozen=True)
class Waiver:
    """One approver's word that one gate of one candidate may fail; what a waiver file holds beside its signature.

    Args:
        gate: The gate.
        subject_sha256: Digest of what was judged, hex.
        policy_sha256: Digest of the policy it was judged by, hex.
        author: Who made the run.
        approver: Who accepts the failure; never the author.
        reason: Why.
        expires: Last day on which it holds, such as ``2026-12-31``.
    """

    gate: str
    subject_sha256: str
    policy_sha256: str
    author: str
    approver: str
    reason: str
    expires: str


_NOT_RUN = "not run"


@dataclass(frozen=True)
class GateResult:
    """What one gate found. Its verdict is the worst of its checks; no checks is ERROR.

    With a waiver, FAIL and INSUFFICIENT become WAIVED; the checks go on to say what failed.

    Args:
        gate: The gate's name in the policy.
        checks: All questions asked, the headline first.
        method: How it was measured, with the source of the statistics.
        items_sha256: Digest of the per-item file the verdict rests on, hex.
        seconds: Time the gate took.
        details: Further figures for reports (JSON values only).
        waiver: The waiver that was verified for it; a gate can't give itself one.
    """

    gate: str
    checks: tuple[Check, ...]
    method: str = ""
    items_sha256: str = ""
    seconds: float = 0.0
    details: Mapping[str, JSON] = field(default_factory=dict)
    waiver: Waiver | None = None

    @property
    def measured(self) -> Verdict:
        """The worst of the checks, whatever was waived."""
        return worst([check.verdict for check in self.checks])

    @property
    def verdict(self) -> Verdict:
        waived = self.waiver is not None and self.measured in (Verdict.FAIL, Verdict.INSUFFICIENT)
        return Verdict.WAIVED if waived else self.measured

    @property
    def deciding(self) -> Check | None:
        """The first check that decided the verdict: the one to show in a table."""
        return next((check for check in self.checks if check.verdict is self.measured), None)

    @property
    def reason(self) -> str:
        deciding = self.deciding
        if deciding is None:
            return "the gate asked nothing"
        if self.verdict is Verdict.WAIVED and self.waiver is not None:
            by = f"waived by {self.waiver.approver} until {self.waiver.expires}: {self.waiver.reason}"
            return f"{self.measured}, {deciding.reason} ({by})"
        return deciding.reason

    def to_json(self) -> dict[str, JSON]:
        return {**asdict(self), "verdict": self.verdict.value}

    @classmethod
    def from_json(cls, data: Mapping[str, JSON]) -> GateResult:
        """Rebuild a result; the verdict is derived again and must equal the one written."""
        checks = tuple(
            Check(
                **{
                    **check,
                    "verdict": Verdict(check["verdict"]),
                    "interval": Interval(**check["interval"]) if check["interval"] else None,
                    "items": tuple(check["items"]),
                }
            )
            for check in data["checks"]
        )
        fields = {key: value for key, value in data.items() if key not in {"verdict", "checks", "waiver"}}
        waiver = Waiver(**data["waiver"]) if data.get("waiver") else None
        result = cls(checks=checks, waiver=waiver, **fields)
        if result.verdict.value != data["verdict"]:
            raise ValueError(f"gate '{result.gate}' says {data['verdict']} but its checks say {result.verdict}")
        return result

    @classmethod
    def single(cls, gate: str, verdict: Verdict, reason: str, *, seconds: float = 0.0) -> GateResult:
        """Build the result of a gate that could not be judged."""
        return cls(gate=gate, checks=(Check(name="gate", verdict=verdict, reason=reason),), seconds=seconds)

    @classmethod
    def not_run(cls, gate: str, reason: str) -> GateResult:
        """Build the result of a gate that was never asked: INSUFFICIENT, and nothing that could be waived."""
        return cls(gate=gate, checks=(Check(name=_NOT_RUN, verdict=Verdict.INSUFFICIENT, reason=reason),))

    @property
    def was_run(self) -> bool:
        return all(check.name != _NOT_RUN for check in self.checks)


@dataclass(frozen=True)
class GateContext:
    """What a gate may read. It is pickled into the gate's own process.

    Args:
        settings: The gate's block of the policy, already checked against the gate's settings class.
        artifacts: Name to file or folder. Names in use: ``data.train``, ``data.validation``, ``data.evaluation``
            (lines of :class:`Sample`); ``predictions.candidate|champion|base`` (lines of :class:`Prediction`);
            ``generations.red_team|benign.candidate|champion|base`` (lines of :class:`Generation`),
            ``general.candidate|champion|base`` (lines of :class:`TextScore`); ``predictions.anchor``;
            ``prompts.canaries``; ``delta``, or ``candidate`` (folder) and ``loaded`` for a model trained elsewhere;
            ``base_model`` (folder); ``cost`` (JSON of :class:`CostReport`); ``cost.champion``.
        output_dir: Folder where the gate may leave files for the report (Data Docs, per-item judgements).
        task: What the model is trained for.
        facts: Further plain facts, such as ``{"first": True}`` when no champion is expected, and in ``generation`` how
            free text was written.
    """

    settings: Any
    artifacts: Mapping[str, Path]
    output_dir: Path
    task: Task = "classification"
    facts: Mapping[str, JSON] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        return name in self.artifacts

    def path(self, name: str) -> Path:
        """Return the file of an artifact.

        Raises:
            MissingEvidenceError: If the run did not produce it.
        """
        path = self.artifacts.get(name)
        if path is None or not path.exists():
            raise MissingEvidenceError(f"no '{name}' to judge from; did the stage that writes it run?")
        return path


class Gate(Protocol):
    """A question about a model that must be answered with evidence before the model is registered."""

    name: str
    settings: type
    stage: Literal["data", "model"]

    def run(self, context: GateContext) -> GateResult:
        """Judge. Anything raised becomes ERROR; :class:`MissingEvidenceError` becomes INSUFFICIENT."""
        ...
