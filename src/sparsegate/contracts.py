"""The one page everyone reads: what the parts hand to each other.

Nothing here imports torch, transformers, lightning, mlflow or Great Expectations.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

from sparsegate.errors import ExitCode, MissingEvidenceError

if TYPE_CHECKING:
    from torch import Tensor

JSON = Any
SupportKind = Literal["element", "column", "row", "block"]
Allocation = Literal["uniform", "rank", "global"]
Task = Literal["classification", "generation"]
Attack = Literal["direct", "role_play", "prefix_injection", "refusal_suppression", "translation"]


# --- data ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """One example of either task.

    Args:
        id: Unique within its file; stable across runs.
        prompt: What the user writes.
        response: What the model must answer; for classification this is the label word.
        slices: Column name to value, for results by group (for instance ``{"channel": "email"}``).
    """

    id: str
    prompt: str
    response: str
    slices: Mapping[str, str] = field(default_factory=dict)


class EncodedSample(NamedTuple):
    """Token ids of one sample; the loss is taken on ``response_ids`` only."""

    id: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]


@dataclass(frozen=True)
class Prediction:
    """What one model said to one sample: a line of ``predictions.<model>.jsonl``.

    Args:
        id: The sample's id.
        expected: The sample's response.
        predicted: The model's answer.
        correct: Whether the answer counts as right.
        nll_nats: Mean negative log-likelihood of the expected response per token, or None if it was not scored.
        slices: Copied from the sample.
    """

    id: str
    expected: str
    predicted: str
    correct: bool
    nll_nats: float | None = None
    slices: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Generation:
    """Free text that one model wrote to one prompt of a prompt set: a line of ``generations.<set>.<model>.jsonl``."""

    id: str
    category: str
    prompt: str
    response: str
    finished: bool


@dataclass(frozen=True)
class TextScore:
    """How likely one model finds a given text: a line of ``general.<model>.jsonl``.

    Args:
        id: The text's id.
        kind: What kind of text it is.
        nats: Negative log-likelihood of the whole text.
        tokens: Its length in the model's tokens.
    """

    id: str
    kind: str
    nats: float
    tokens: int


# --- sparse training ----------------------------------------------------------------------------


Statistic = Literal[
    "grad_sum", "grad_sq_sum", "grad_sq_columns", "grad_sq_rows", "output_grad_sq", "input_sq", "movement"
]


@dataclass(frozen=True)
class CalibrationStats:
    """What calibration batches told about one weight of shape (out, in); absent figures are None.

    Args:
        grad_sum: Sum of the loss gradients over the batches, shape (out, in).
        grad_sq_sum: Sum of the squared gradients over the batches, shape (out, in).
        grad_sq_columns: ``grad_sq_sum`` summed over each column, shape (in).
        grad_sq_rows: ``grad_sq_sum`` summed over each row, shape (out).
        output_grad_sq: Sum of the squared gradients of the map's outputs over all tokens, shape (out).
        input_sq: Sum of the squared inputs of the map over all tokens, shape (in).
        movement: How far the weight moves where each batch's gradient makes a step, shape (out, in).
        generator: Source of randomness for selectors that need it.
    """

    grad_sum: Tensor | None = None
    grad_sq_sum: Tensor | None = None
    grad_sq_columns: Tensor | None = None
    grad_sq_rows: Tensor | None = None
    output_grad_sq: Tensor | None = None
    input_sq: Tensor | None = None
    movement: Tensor | None = None
    generator: Any = None


@runtime_checkable
class MaskSelector(Protocol):
    """Scores the entries of one weight; the highest scores are trained.

    A selector only scores: :func:`sparsegate.sparse.support.top_k` turns scores into indices.
    """

    name: str
    needs: frozenset[Statistic]

    def score(self, weight: Tensor, stats: CalibrationStats) -> Tensor:
        """Return finite scores of the weight's shape (out, in), on the weight's device."""
        ...


@runtime_checkable
class UnitSelector(MaskSelector, Protocol):
    """A selector that scores whole columns or rows from smaller statistics than it needs for entries.

    ``unit_needs`` names, for each kind of support it does this for (``column``, ``row``), what it then needs in place
    of ``needs``.
    """

    unit_needs: Mapping[SupportKind, frozenset[Statistic]]

    def score_units(self, weight: Tensor, stats: CalibrationStats, kind: SupportKind) -> Tensor:
        """Return finite scores of shape (in) for ``column``, (out) for ``row``."""
        ...


# --- verdicts -----------------------------------------------------------------------------------


class Verdict(StrEnum):
    """How a gate ends. Only PASS lets a model through, or WAIVED: it did not pass, and a signed waiver accepts that."""

    PASS = "PASS"
    WAIVED = "WAIVED"
    FAIL = "FAIL"
    INSUFFICIENT = "INSUFFICIENT"
    ERROR = "ERROR"

    @property
    def exit_code(self) -> ExitCode:
        return _EXIT_CODES[self]

    @property
    def releases(self) -> bool:
        return self in (Verdict.PASS, Verdict.WAIVED)


_EXIT_CODES = {
    Verdict.PASS: ExitCode.PASSED,
    Verdict.WAIVED: ExitCode.PASSED,
    Verdict.FAIL: ExitCode.GATE_FAILED,
    Verdict.INSUFFICIENT: ExitCode.NOT_ENOUGH_EVIDENCE,
    Verdict.ERROR: ExitCode.ERROR,
}
_SEVERITY = (Verdict.PASS, Verdict.WAIVED, Verdict.INSUFFICIENT, Verdict.FAIL, Verdict.ERROR)


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the most severe verdict; no verdict at all is ERROR."""
    return max(verdicts, key=_SEVERITY.index) if verdicts else Verdict.ERROR


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval.

    Args:
        low: Lower bound.
        high: Upper bound.
        confidence: Two-sided level, such as 0.95.
        method: Name of the method, such as ``"wilson"``.
    """

    low: float
    high: float
    confidence: float
    method: str


@dataclass(frozen=True)
class Check:
    """One question of a gate with its answer. Build it with :meth:`at_least` or :meth:`at_most`.

    Args:
        name: What was asked, such as ``"overall"`` or ``"channel=email"``.
        verdict: The answer.
        observed: The measured figure.
        threshold: The bound from the policy.
        direction: Whether the deciding figure must be at least or at most the threshold.
        interval: Interval around ``observed``; its pessimistic end is what is compared.
        n: Items behind the figure.
        minimum_n: Items needed for a PASS.
        unscorable: Items that could not be scored; they count against the model.
        reason: One line for the user: why, and what to do next. Required unless PASS.
        items: Ids of the items that decided it, ten at most.
    """

    name: str
    verdict: Verdict
    observed: float | None = None
    threshold: float | None = None
    direction: Literal["at_least", "at_most"] = "at_least"
    interval: Interval | None = None
    n: int = 0
    minimum_n: int = 1
    unscorable: int = 0
    reason: str = ""
    items: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.verdict is Verdict.WAIVED:
            raise ValueError(f"check '{self.name}' can't be waived; a waiver is for a whole gate")
        if self.verdict is Verdict.PASS:
            problem = self._pass_problem()
            if problem:
                raise ValueError(f"check '{self.name}' can't pass: {problem}")
        elif not self.reason:
            raise ValueError(f"check '{self.name}' is {self.verdict} and gives no reason")

    def _pass_problem(self) -> str | None:
        """Say why a PASS would not rest on evidence, or None if it does."""
        if self.observed is None or not math.isfinite(self.observed):
            return f"observed must be a finite number, got {self.observed}"
        if self.threshold is None or not math.isfinite(self.threshold):
            return f"threshold must be a finite number, got {self.threshold}"
        if self.minimum_n < 1 or self.n < self.minimum_n:
            return f"n must be at least max(1, minimum_n={self.minimum_n}), got {self.n}"
        decided_on = self.decided_on
        if not math.isfinite(decided_on):
            return f"the deciding figure must be finite, got {decided_on}"
        holds = decided_on >= self.threshold if self.direction == "at_least" else decided_on <= self.threshold
        return None if holds else f"{decided_on} is not {self.direction.replace('_', ' ')} {self.threshold}"

    @property
    def decided_on(self) -> float:
        """The figure compared with the threshold: the interval's pessimistic end, else the observed figure."""
        if self.interval is not None:
            return self.interval.low if self.direction == "at_least" else self.interval.high
        return math.nan if self.observed is None else self.observed

    @classmethod
    def at_least(cls, name: str, observed: float, threshold: float, **evidence: Any) -> Check:
        """Judge that a figure (or its interval's lower end) reaches the threshold."""
        return cls._judge(name, observed, threshold, "at_least", **evidence)

    @classmethod
    def at_most(cls, name: str, observed: float, threshold: float, **evidence: Any) -> Check:
        """Judge that a figure (or its interval's upper end) stays within the threshold."""
        return cls._judge(name, observed, threshold, "at_most", **evidence)

    @classmethod
    def _judge(
        cls,
        name: str,
        observed: float,
        threshold: float,
        direction: Literal["at_least", "at_most"],
        *,
        n: int,
        minimum_n: int = 1,
        interval: Interval | None = None,
        unscorable: int = 0,
        reason: str = "",
        items: tuple[str, ...] = (),
    ) -> Check:
        draft = cls(
            name=name,
            verdict=Verdict.ERROR,
            observed=observed,
            threshold=threshold,
            direction=direction,
            interval=interval,
            n=n,
            minimum_n=minimum_n,
            unscorable=unscorable,
            reason=reason or "not judged",
            items=items[:10],
        )
        problem = draft._pass_problem()
        figures = [observed, threshold, draft.decided_on]
        if problem is None:
            verdict, why = Verdict.PASS, reason
        elif not all(math.isfinite(figure) for figure in figures):
            verdict, why = Verdict.ERROR, problem
        elif n < max(1, minimum_n):
            verdict, why = Verdict.INSUFFICIENT, f"needs {max(1, minimum_n)} items, has {n}"
        else:
            verdict = Verdict.FAIL
            why = f"{_short(draft.decided_on)} is not {direction.replace('_', ' ')} {_short(threshold)}"
        text = why if verdict is Verdict.PASS or not reason else f"{why}: {reason}"
        return cls(**{**draft.__dict__, "verdict": verdict, "reason": text})


def _short(value: float) -> str:
    return f"{value:.4g}"


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


# --- the run ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CostReport:
    """What training cost, as measured.

    Args:
        method: Name of the training method.
        train_seconds: Wall-clock time of fitting, selection included.
        selection_seconds: Part of it spent on choosing the mask.
        tokens_per_second: Real (unpadded) training tokens per second of fitting.
        steps: Optimizer steps.
        peak_memory_bytes: Peak resident memory of the process (CPU) or peak allocated (CUDA).
        trainable_parameters: Entries that are updated.
        total_parameters: Entries in the model.
        trainable_state_bytes: Bytes of trained values, their gradients and optimizer moments.
        artifact_bytes: Size of the delta file.
        base_bytes: Size of the base model's weights.
        device: Where it ran, such as ``"cpu (2 threads)"``.
    """

    method: str
    train_seconds: float
    selection_seconds: float
    tokens_per_second: float
    steps: int
    peak_memory_bytes: int
    trainable_parameters: int
    total_parameters: int
    trainable_state_bytes: int
    artifact_bytes: int
    base_bytes: int
    device: str


NOT_INSTALLED = "not installed"


@dataclass(frozen=True)
class RunManifest:
    """What went into a run and came out: enough to repeat it and to know that it is the same.

    Args:
        run_key: Digest of everything that decides the outcome, hex.
        code_version: Version of sparsegate.
        config_sha256: Digest of the resolved configuration.
        policy_sha256: Digest of the resolved policy.
        base_digest: Digest of the base model folder.
        data_sha256: Name to digest of each input file.
        environment: Package name to version, or to ``NOT_INSTALLED``.
        author: Who made the run first; a waiver needs somebody else. It does not decide the outcome.
        triggers: Why it was started first, such as ``"schedule: slot 2026-11-25"``. They don't decide the outcome.
    """

    run_key: str
    code_version: str
    config_sha256: str
    policy_sha256: str
    base_digest: str
    data_sha256: Mapping[str, str]
    environment: Mapping[str, str]
    author: str = ""
    triggers: Sequence[str] = ()


def canonical_json(value: JSON) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, no NaN.

    Example:
        >>> canonical_json({"b": 1, "a": [True, None]})
        '{"a":[true,null],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
