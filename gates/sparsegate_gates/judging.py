"""What the gates on free text share: judging answers, proving that the judge is awake, and keeping each judgement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sparsegate.contracts import JSON, Check, GateContext, Generation, Verdict
from sparsegate.errors import DataError, MissingEvidenceError
from sparsegate.evaluation.intervals import clopper_pearson
from sparsegate.evaluation.judge_error import JudgeCalibration, corrected_rate
from sparsegate.files import read_records, sha256_file, write_records
from sparsegate_gates.evidence import read_generations, require_same_items
from sparsegate_gates.judges import Judge, Judgement

Fault = Literal["harmful", "refused"]


@dataclass(frozen=True)
class Canary:
    """An answer with a known label: a line of ``prompts.canaries``."""

    id: str
    prompt: str
    response: str
    harmful: bool
    refused: bool


@dataclass(frozen=True)
class JudgedAnswer:
    """A line of ``judgements.jsonl``: one model's answer to one prompt, judged."""

    id: str
    category: str
    model: str
    harmful: bool
    refused: bool
    scorable: bool

    def counts_as(self, fault: Fault) -> bool:
        """Say whether the answer counts against the model; what can't be scored always does."""
        return bool(getattr(self, fault)) or not self.scorable


def judge_pair(
    context: GateContext, judge: Judge, prompt_set: str
) -> tuple[list[JudgedAnswer], list[JudgedAnswer], str]:
    """Judge the candidate's and the base's answers to one prompt set, and keep the judgements in the output folder.

    Returns:
        The candidate's judgements, the base's in the same order, and the digest of the file that holds both.
    """
    candidate = read_generations(context, f"generations.{prompt_set}.candidate")
    base = read_generations(context, f"generations.{prompt_set}.base")
    require_same_items(candidate, base, f"generations.{prompt_set}.base")
    judged = [_judge_all(judge, lines, model) for lines, model in ((candidate, "candidate"), (base, "base"))]
    path = Path(context.output_dir) / "judgements.jsonl"
    write_records(path, [*judged[0], *judged[1]])
    return judged[0], judged[1], sha256_file(path)


def canary_checks(context: GateContext, judge: Judge, fault: Fault, *, floor: float, minimum_n: int) -> list[Check]:
    """Judge answers with known labels: a judge that gets them wrong can't judge a model, which is an ERROR.

    Args:
        context: Where ``prompts.canaries`` is.
        judge: The judge.
        fault: The label that is checked.
        floor: Least sensitivity and specificity.
        minimum_n: Canaries needed with the label and without it.
    """
    canaries = read_records(context.path("prompts.canaries"), Canary)
    for canary in canaries:
        if not isinstance(canary.harmful, bool) or not isinstance(canary.refused, bool):
            raise DataError(f"canary '{canary.id}': harmful and refused must be true or false")
    checks: list[Check] = []
    for label, name in ((True, "sensitivity"), (False, "specificity")):
        chosen = [canary for canary in canaries if getattr(canary, fault) is label]
        if not chosen:
            raise MissingEvidenceError(f"the canaries hold no answer with {fault}={label}: the judge can't be checked")
        judged = [_judge_one(judge, canary.prompt, canary.response) for canary in chosen]
        wrong = [canary.id for canary, found in zip(chosen, judged, strict=True) if getattr(found, fault) is not label]
        check = Check.at_least(
            f"judge's {name} ({fault})",
            1 - len(wrong) / len(chosen),
            floor,
            n=len(chosen),
            minimum_n=minimum_n,
            items=tuple(wrong),
        )
        checks.append(_as_error(check) if check.verdict is Verdict.FAIL else check)
    return checks


def calibration_of(canaries: Sequence[Check]) -> JudgeCalibration:
    """Return the judge's errors as the canaries showed them: the checks of :func:`canary_checks`."""
    found, cleared = (round((check.observed or 0.0) * check.n) for check in canaries)
    return JudgeCalibration(found, canaries[0].n, cleared, canaries[1].n)


def ceiling_check(
    name: str,
    judged: Sequence[JudgedAnswer],
    fault: Fault,
    ceiling: float,
    minimum_n: int,
    confidence: float,
    *,
    calibration: JudgeCalibration | None = None,
) -> Check:
    """Judge that the upper bound of a fault's rate stays within a ceiling.

    Args:
        name: Name of the check.
        judged: The answers.
        fault: The fault.
        ceiling: The bound.
        minimum_n: Answers needed.
        confidence: Two-sided level.
        calibration: The judge's errors, for which the rate is corrected; None takes the judge at its word.
    """
    faulty = [answer.id for answer in judged if answer.counts_as(fault)]
    rate, interval = len(faulty) / len(judged), clopper_pearson(len(faulty), len(judged), confidence)
    if calibration is not None:
        rate, interval = corrected_rate(len(faulty), len(judged), calibration, confidence=confidence)
    return Check.at_most(
        name,
        rate,
        ceiling,
        n=len(judged),
        minimum_n=minimum_n,
        interval=interval,
        unscorable=sum(not answer.scorable for answer in judged),
        items=tuple(faulty),
    )


def new_faults(candidate: Sequence[JudgedAnswer], base: Sequence[JudgedAnswer], fault: Fault) -> tuple[str, ...]:
    """Return the ids of the answers that count against the candidate and not against the base."""
    pairs = zip(candidate, base, strict=True)
    return tuple(ours.id for ours, theirs in pairs if ours.counts_as(fault) and not theirs.counts_as(fault))


def rates_by_category(candidate: Sequence[JudgedAnswer], base: Sequence[JudgedAnswer], fault: Fault) -> dict[str, JSON]:
    """Return for each category how many answers count against each model."""
    table: dict[str, JSON] = {}
    for category in sorted({answer.category for answer in candidate}):
        ours = [answer for answer in candidate if answer.category == category]
        theirs = [answer for answer in base if answer.category == category]
        table[category] = {
            "n": len(ours),
            "candidate": sum(answer.counts_as(fault) for answer in ours),
            "base": sum(answer.counts_as(fault) for answer in theirs),
        }
    return table


def _judge_all(judge: Judge, lines: Sequence[Generation], model: str) -> list[JudgedAnswer]:
    judged: list[JudgedAnswer] = []
    for line in lines:
        found = _judge_one(judge, line.prompt, line.response)
        judged.append(JudgedAnswer(line.id, line.category, model, found.harmful, found.refused, found.scorable))
    return judged


def _judge_one(judge: Judge, prompt: str, response: str) -> Judgement:
    found = judge(prompt, response)
    if not isinstance(found, Judgement) or not all(
        isinstance(part, bool) for part in (found.harmful, found.refused, found.scorable)
    ):
        raise DataError(f"the judge must return a Judgement of true and false, returned {found!r}")
    return found


def _as_error(check: Check) -> Check:
    reason = (
        f"the judge is wrong on {len(check.items)} of {check.n} canaries, so its word on the model counts for nothing"
    )
    return Check(**{**check.__dict__, "verdict": Verdict.ERROR, "reason": reason})
