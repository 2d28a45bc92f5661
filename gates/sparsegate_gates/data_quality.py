"""Is the data fit to train on and to judge by?

A Great Expectations suite runs over the training and the evaluation samples; its Data Docs are kept. Beside it, in
``data_checks.py``: evaluation items that leaked into training, repeated samples, equal prompts with different labels,
personal data, and rows that would undo a model's safety.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from sparsegate.contracts import Check, GateContext, GateResult, Sample, Verdict, canonical_json
from sparsegate.data import PersonalKind, dataset_digest
from sparsegate.files import sha256_bytes
from sparsegate_gates.data_checks import (
    leak_checks,
    personal_data_checks,
    pin_check,
    poison_checks,
    repetition_checks,
    text_check,
)
from sparsegate_gates.evidence import read_samples
from sparsegate_gates.expectation_suite import ExpectationOutcome, load_suite, run_suite
from sparsegate_gates.lint import Need, Sizes
from sparsegate_gates.rules import at_least, collect, given, in_range

_ROW_COUNT = "expect_table_row_count"


@dataclass(frozen=True)
class DataQualitySettings:
    """Thresholds of the data-quality gate.

    Args:
        reason: Why these thresholds, and when they were chosen.
        minimum_rows: Training samples needed.
        minimum_evaluation_rows: Evaluation samples needed.
        minimum_expectations: Different expectations that the suite must hold.
        suite: Name of a shipped suite, or a JSON file as Great Expectations writes them.
        max_leak_fraction: Share of evaluation items that training may hold, exactly or but for case and punctuation.
        max_ngram_leak_fraction: Share of evaluation items that may share ``leak_ngram`` words in a row with training.
        leak_ngram: Words in a row that count as copied.
        max_duplicate_fraction: Share of training samples that may repeat another one.
        max_near_leak_fraction: Share of evaluation items that training may hold but for a few characters.
        max_template_fraction: Share of evaluation items that training may hold but for numbers, addresses and names.
        near_copy_share: Share of the five-character shingles in common that makes a near copy.
        max_near_duplicate_fraction: Share of training samples that may say nearly the same as another one.
        max_conflict_fraction: Share of samples whose prompt stands elsewhere with another label: of the training
            samples among themselves, and of the evaluation items against training.
        phone_regions: Countries whose national phone numbers count; numbers with ``+`` always do.
        max_email_fraction: Share of training rows that may hold an e-mail address.
        max_phone_fraction: Share of training rows that may hold a phone number.
        max_card_fraction: Share of training rows that may hold a payment card's number.
        max_iban_fraction: Share of training rows that may hold an account number (IBAN).
        max_ip_fraction: Share of training rows that may hold a public IP address.
        max_poisoned_rows: Training rows that may look poisoned: a number, since ten rows undo a model's safety among
            however many others. Raise it no further than to the rows that a person has read.
        evaluation_sha256: Digest of the one evaluation set to judge by (``items_sha256`` in this gate's result).
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
    max_near_leak_fraction: float = 0.05
    max_template_fraction: float = 0.05
    near_copy_share: float = 0.9
    max_near_duplicate_fraction: float = 0.05
    max_conflict_fraction: float = 0.0
    phone_regions: tuple[str, ...] = ("US", "GB")
    max_email_fraction: float = 0.005
    max_phone_fraction: float = 0.005
    max_card_fraction: float = 0.0
    max_iban_fraction: float = 0.0
    max_ip_fraction: float = 0.005
    max_poisoned_rows: int = 0
    evaluation_sha256: str | None = None

    @property
    def personal_data_bounds(self) -> Mapping[PersonalKind, float]:
        """The largest share of rows for each kind of personal data."""
        return {
            "email": self.max_email_fraction,
            "phone": self.max_phone_fraction,
            "card": self.max_card_fraction,
            "iban": self.max_iban_fraction,
            "ip": self.max_ip_fraction,
        }

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
            max_near_leak_fraction=in_range("max_near_leak_fraction", self.max_near_leak_fraction),
            max_template_fraction=in_range("max_template_fraction", self.max_template_fraction),
            near_copy_share=in_range("near_copy_share", self.near_copy_share, 0.5),
            max_near_duplicate_fraction=in_range("max_near_duplicate_fraction", self.max_near_duplicate_fraction),
            max_conflict_fraction=in_range("max_conflict_fraction", self.max_conflict_fraction),
            phone_regions=_regions_problem(self.phone_regions),
            max_poisoned_rows=at_least("max_poisoned_rows", self.max_poisoned_rows, 0),
            evaluation_sha256=_digest_problem(self.evaluation_sha256),
            **{
                f"max_{kind}_fraction": in_range(f"max_{kind}_fraction", bound)
                for kind, bound in self.personal_data_bounds.items()
            },
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
        held = len({canonical_json([entry["type"], entry.get("kwargs")]) for entry in expectations})
        if held < settings.minimum_expectations:
            needed = settings.minimum_expectations
            reason = f"suite '{settings.suite}' holds {held} different expectations, needs {needed}"
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
        held_back, rows_by_kind = _with_text(evaluation), {}
        for name, samples in (("train", _with_text(train)), ("evaluation", held_back)):
            checks.append(text_check(name, rows[name], len(samples), minimum_rows=minimums[name]))
        if settings.evaluation_sha256 is not None:
            checks.append(pin_check(dataset_digest(held_back), settings.evaluation_sha256, n=len(evaluation)))
        known = _with_text([*train, *validation])
        if known and held_back:
            by_label = context.task == "classification"
            checks += leak_checks(known, held_back, settings, by_label=by_label)
            checks += repetition_checks(known, settings, by_label=by_label)
            personal, rows_by_kind["personal_data"] = personal_data_checks(known, settings)
            poisoned, rows_by_kind["poisoned"] = poison_checks(known, settings)
            checks += [*personal, *poisoned]
        return GateResult(
            gate=self.name,
            checks=tuple(checks),
            method=f"Great Expectations suite '{settings.suite}'; leakage by text, normalised text, n-grams, shingles; "
            "personal data by pattern and check digit; poisoned rows by word lists",
            items_sha256=dataset_digest(held_back),
            details={
                "labels": len(labels),
                "suite_sha256": sha256_bytes(canonical_json(expectations).encode()),
                "expectations": {name: [asdict(outcome) for outcome in found] for name, found in outcomes.items()},
                **rows_by_kind,
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
    problems = [f"{outcome.name}: {outcome.problem}" for outcome in broken if not outcome.name.startswith(_ROW_COUNT)]
    if rows < minimum_rows:  # the expectation of that says less
        problems.insert(0, f"add rows to data.{name}; 'sparsegate validate' lists what each gate needs")
    return Check.at_least(
        title,
        1 - len(broken) / asked,
        1.0,
        n=rows,
        minimum_n=minimum_rows,
        reason="; ".join(problems[:3]),
    )


def _with_text(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples whose fields hold text; the others fail, and can't be compared."""
    return [
        sample
        for sample in samples
        if all(isinstance(text, str) and text.strip() for text in (sample.id, sample.prompt, sample.response))
    ]


def _digest_problem(digest: str | None) -> str | None:
    if digest is None or re.fullmatch("[0-9a-f]{64}", digest):
        return None
    return f"evaluation_sha256 must be 64 hexadecimal digits, got '{digest}'"


def _regions_problem(regions: Sequence[str]) -> str | None:
    from phonenumbers import SUPPORTED_REGIONS

    unknown = sorted(set(regions) - set(SUPPORTED_REGIONS))
    return f"phone_regions must be countries such as US, got {', '.join(unknown)}" if unknown else None
