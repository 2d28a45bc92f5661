"""Is the data fit to train on and to judge by?

A Great Expectations suite runs over the training and the evaluation samples; its Data Docs are kept. Beside it:
evaluation items that leaked into training, duplicates, and equal prompts with different labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from sparsegate.contracts import Check, GateContext, GateResult, Sample, Verdict
from sparsegate.data.fingerprint import dataset_digest, find_duplicates, find_label_conflicts, find_leakage
from sparsegate_gates.evidence import read_samples
from sparsegate_gates.expectation_suite import ExpectationOutcome, load_suite, run_suite
from sparsegate_gates.lint import Need, Sizes
from sparsegate_gates.rules import at_least, collect, given, in_range


@dataclass(frozen=True)
class DataQualitySettings:
    """Thresholds of the data-quality gate.

    Args:
        reason: Why these thresholds, and when they were chosen.
        minimum_rows: Training samples needed.
        minimum_evaluation_rows: Evaluation samples needed.
        minimum_expectations: Expectations that the suite must hold.
        suite: Name of a shipped suite, or a JSON file as Great Expectations writes them.
        max_leak_fraction: Share of evaluation items that training may hold, exactly or but for case and punctuation.
        max_ngram_leak_fraction: Share of evaluation items that may share ``leak_ngram`` words in a row with training.
        leak_ngram: Words in a row that count as copied.
        max_duplicate_fraction: Share of training samples that may repeat another one.
        max_conflict_fraction: Share of training samples whose prompt stands elsewhere with another label.
    """

    reason: str
    minimum_rows: int
    minimum_evaluation_rows: int
    minimum_expectations: int
    suite: str = "samples"
    max_leak_fraction: float = 0.0
    max_ngram_leak_fraction: float = 0.02
    leak_ngram: int = 8
    max_duplicate_fraction: float = 0.02
    max_conflict_fraction: float = 0.0

    def problems(self) -> dict[str, str]:
        return collect(
            reason=given("reason", self.reason),
            minimum_rows=at_least("minimum_rows", self.minimum_rows, 1),
            minimum_evaluation_rows=at_least("minimum_evaluation_rows", self.minimum_evaluation_rows, 1),
            minimum_expectations=at_least("minimum_expectations", self.minimum_expectations, 1),
            max_leak_fraction=in_range("max_leak_fraction", self.max_leak_fraction),
            max_ngram_leak_fraction=in_range("max_ngram_leak_fraction", self.max_ngram_leak_fraction),
            leak_ngram=at_least("leak_ngram", self.leak_ngram, 3),
            max_duplicate_fraction=in_range("max_duplicate_fraction", self.max_duplicate_fraction),
            max_conflict_fraction=in_range("max_conflict_fraction", self.max_conflict_fraction),
        )

    def needs(self, sizes: Sizes) -> list[Need]:
        return [
            Need("training rows", "train", sizes.train, self.minimum_rows),
            Need("evaluation rows", "evaluation", sizes.evaluation, self.minimum_evaluation_rows),
        ]


class DataQuality:
    """Judges the samples before anything is trained."""

    name = "data_quality"
    settings: type = DataQualitySettings
    stage: Literal["data", "model"] = "data"

    def run(self, context: GateContext) -> GateResult:
        settings: DataQualitySettings = context.settings
        train, evaluation = read_samples(context, "data.train"), read_samples(context, "data.evaluation")
        validation = read_samples(context, "data.validation") if context.has("data.validation") else []
        expectations = load_suite(settings.suite, task=context.task)
        if len(expectations) < settings.minimum_expectations:
            held, needed = len(expectations), settings.minimum_expectations
            reason = f"suite '{settings.suite}' holds {held} expectations, needs {needed}"
            return GateResult.single(self.name, Verdict.INSUFFICIENT, reason)

        labels = sorted({sample.response for sample in train if isinstance(sample.response, str)})
        outcomes = run_suite(
            {"train": train, "evaluation": evaluation},
            expectations,
            {
                "train": {"labels": labels, "minimum_rows": settings.minimum_rows},
                "evaluation": {"labels": labels, "minimum_rows": settings.minimum_evaluation_rows},
            },
            data_docs=Path(context.output_dir) / "data_docs",
        )
        minimums = {"train": settings.minimum_rows, "evaluation": settings.minimum_evaluation_rows}
        rows = {"train": len(train), "evaluation": len(evaluation)}
        checks = [
            _suite_check(name, found, asked=len(expectations), rows=rows[name], minimum_rows=minimums[name])
            for name, found in outcomes.items()
        ]
        known, held_back = _with_text([*train, *validation]), _with_text(evaluation)
        if known and held_back:
            checks += _leak_checks(known, held_back, settings)
            checks += _repetition_checks(known, settings, by_label=context.task == "classification")
        return GateResult(
            gate=self.name,
            checks=tuple(checks),
            method=f"Great Expectations suite '{settings.suite}'; leakage by text, normalised text, word n-grams",
            items_sha256=dataset_digest(_with_text(evaluation)),
            details={
                "labels": len(labels),
                "expectations": {name: [asdict(outcome) for outcome in found] for name, found in outcomes.items()},
            },
        )


def _suite_check(
    name: str, outcomes: Sequence[ExpectationOutcome], *, asked: int, rows: int, minimum_rows: int
) -> Check:
    """Judge that every expectation asked for ran and holds."""
    title = f"{name}: expectations held"
    crashed = [outcome.name for outcome in outcomes if outcome.crashed]
    if crashed or len(outcomes) != asked:
        what = (
            f"{', '.join(crashed[:3])} could not be evaluated"
            if crashed
            else f"{len(outcomes)} of {asked} were evaluated"
        )
        return Check(title, Verdict.ERROR, n=rows, reason=f"{what}; look at the columns of the {name} samples")
    broken = [outcome for outcome in outcomes if not outcome.passed]
    return Check.at_least(
        title,
        1 - len(broken) / asked,
        1.0,
        n=rows,
        minimum_n=minimum_rows,
        reason="; ".join(f"{outcome.name}: {outcome.problem}" for outcome in broken[:3]),
    )


def _leak_checks(known: Sequence[Sample], held_back: Sequence[Sample], settings: DataQualitySettings) -> list[Check]:
    leaks = find_leakage(known, held_back, ngram=settings.leak_ngram)
    checks: list[Check] = []
    for name, kinds, bound in (
        ("evaluation items seen in training", {"exact", "normalised"}, settings.max_leak_fraction),
        (f"evaluation items sharing {settings.leak_ngram} words in a row", {"ngram"}, settings.max_ngram_leak_fraction),
    ):
        found = [leak for leak in leaks if leak.kind in kinds]
        reason = f"'{found[0].evaluation_id}' is '{found[0].train_id}' of training; take it out of one" if found else ""
        items = tuple(leak.evaluation_id for leak in found)
        checks.append(
            Check.at_most(name, len(found) / len(held_back), bound, n=len(held_back), reason=reason, items=items)
        )
    return checks


def _repetition_checks(known: Sequence[Sample], settings: DataQualitySettings, *, by_label: bool) -> list[Check]:
    """Judge repeated samples and, for classification, equal prompts with different labels."""
    repeated = [item for group in find_duplicates(known) for item in group[1:]]
    checks = [
        Check.at_most(
            "repeated training samples",
            len(repeated) / len(known),
            settings.max_duplicate_fraction,
            n=len(known),
            items=tuple(repeated),
        )
    ]
    if by_label:
        conflicting = [item for group in find_label_conflicts(known) for item in group]
        checks.append(
            Check.at_most(
                "training samples with conflicting labels",
                len(conflicting) / len(known),
                settings.max_conflict_fraction,
                n=len(known),
                items=tuple(conflicting),
            )
        )
    return checks


def _with_text(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples whose fields are text; the others fail the suite, and can't be compared."""
    return [
        sample
        for sample in samples
        if all(isinstance(text, str) for text in (sample.id, sample.prompt, sample.response))
    ]
