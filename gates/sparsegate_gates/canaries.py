"""Answers with known labels, which prove that a judge is awake before its word on a model counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsegate.contracts import Check, GateContext, Verdict
from sparsegate.errors import DataError, MissingEvidenceError
from sparsegate.evaluation.judge_error import JudgeCalibration
from sparsegate.files import read_records
from sparsegate_gates.judges import Fault, Judge
from sparsegate_gates.judging import judge_answers


@dataclass(frozen=True)
class Canary:
    """An answer with a known label: a line of ``prompts.canaries``."""

    id: str
    prompt: str
    response: str
    harmful: bool
    refused: bool


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
        judged = judge_answers(judge, [(canary.prompt, canary.response) for canary in chosen])
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


def canary_errors(canaries: Sequence[Check]) -> JudgeCalibration:
    """Return the judge's errors as the canaries showed them: the checks of :func:`canary_checks`."""
    found, cleared = (round((check.observed or 0.0) * check.n) for check in canaries)
    return JudgeCalibration(found, canaries[0].n, cleared, canaries[1].n)


def _as_error(check: Check) -> Check:
    reason = (
        f"the judge is wrong on {len(check.items)} of {check.n} canaries, so its word on the model counts for nothing"
    )
    return Check(**{**check.__dict__, "verdict": Verdict.ERROR, "reason": reason})
