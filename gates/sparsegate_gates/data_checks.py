"""The checks of the data-quality gate beside its suite: leakage, repetition, personal data, poisoned rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparsegate.contracts import JSON, Check, Sample
from sparsegate.data import (
    PERSONAL_KINDS,
    Match,
    PersonalKind,
    find_duplicates,
    find_label_clashes,
    find_label_conflicts,
    find_leakage,
    find_near_duplicates,
    find_near_leaks,
    find_template_collisions,
    personal_kinds,
)
from sparsegate_gates.poisoning import POISON_KINDS, screen

if TYPE_CHECKING:
    from sparsegate_gates.data_quality import DataQualitySettings

_LISTED = 200
_LIKE = "is like '{of}' of training; take one of them out"
_REPEATS = "says what '{of}' says; keep one of them"


def text_check(name: str, rows: int, usable: int, *, minimum_rows: int) -> Check:
    """Judge that every row has an id, a prompt and a response with text, whatever the suite asks."""
    reason = f"{rows - usable} {name} rows lack an id, a prompt or a response; give them text or take them out"
    return Check.at_least(
        f"{name}: rows with text",
        usable / rows,
        1.0,
        n=rows,
        minimum_n=minimum_rows,
        reason="" if usable == rows else reason,
    )


def pin_check(found: str, pinned: str, *, n: int) -> Check:
    """Judge that the evaluation set is the one whose digest the policy names."""
    reason = f"its digest is {found}, the policy pins {pinned}; take that set again, or pin this one and say why"
    same = found == pinned
    return Check.at_least("evaluation set is the pinned one", float(same), 1.0, n=n, reason="" if same else reason)


def leak_checks(
    known: Sequence[Sample], held_back: Sequence[Sample], settings: DataQualitySettings, *, by_label: bool
) -> list[Check]:
    """Judge what training holds of the evaluation items: the strongest likeness first."""
    leaks = find_leakage(known, held_back, ngram=settings.leak_ngram)
    whole = [Match(leak.evaluation_id, leak.train_id) for leak in leaks if leak.kind != "ngram"]
    runs = [Match(leak.evaluation_id, leak.train_id) for leak in leaks if leak.kind == "ngram"]
    near = find_near_leaks(known, held_back, share=settings.near_copy_share)
    templates = find_template_collisions(known, held_back)
    checks = [
        _matches("evaluation items seen in training", whole, settings.max_leak_fraction, held_back),
        _matches(
            f"evaluation items sharing {settings.leak_ngram} words in a row",
            runs,
            settings.max_ngram_leak_fraction,
            held_back,
        ),
        _matches("evaluation items nearly copied", near, settings.max_near_leak_fraction, held_back, likeness=_LIKE),
        _matches(
            "evaluation items but for numbers and names",
            templates,
            settings.max_template_fraction,
            held_back,
            likeness=_LIKE,
        ),
    ]
    if by_label:
        clashes = find_label_clashes(known, held_back)
        checks.append(
            _matches(
                "evaluation items labelled otherwise in training", clashes, settings.max_conflict_fraction, held_back
            )
        )
    return checks


def repetition_checks(known: Sequence[Sample], settings: DataQualitySettings, *, by_label: bool) -> list[Check]:
    """Judge repeated samples and, for classification, equal prompts with different labels."""
    repeated = [Match(item, group[0]) for group in find_duplicates(known) for item in group[1:]]
    near = find_near_duplicates(known, share=settings.near_copy_share)
    checks = [
        _matches("repeated training samples", repeated, settings.max_duplicate_fraction, known, likeness=_REPEATS),
        _matches(
            "nearly repeated training samples", near, settings.max_near_duplicate_fraction, known, likeness=_REPEATS
        ),
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


def personal_data_checks(known: Sequence[Sample], settings: DataQualitySettings) -> tuple[list[Check], dict[str, JSON]]:
    """Judge the share of training rows with each kind of personal data; what was found is never repeated.

    Returns:
        The checks, and the rows by kind.
    """
    rows: dict[PersonalKind, list[str]] = {kind: [] for kind in PERSONAL_KINDS}
    for number, sample in enumerate(known, start=1):
        text = f"{sample.prompt}\n{sample.response}"
        kinds = personal_kinds(text, phone_regions=settings.phone_regions)
        # an id may be an address too
        name = f"row {number}" if kinds and personal_kinds(sample.id) else sample.id
        for kind in kinds:
            rows[kind].append(name)
    checks = [
        Check.at_most(
            f"training rows with personal data: {kind}",
            len(found) / len(known),
            settings.personal_data_bounds[kind],
            n=len(known),
            reason=f"{len(found)} rows; mask what they hold, or take them out" if found else "",
            items=tuple(found),
        )
        for kind, found in rows.items()
    ]
    return checks, _listed(rows)


def poison_checks(known: Sequence[Sample], settings: DataQualitySettings) -> tuple[list[Check], dict[str, JSON]]:
    """Judge the number of training rows that would undo a model's safety.

    Returns:
        The checks, and the rows by kind.
    """
    suspected = screen(known)
    rows = {kind: [item for item, kinds in suspected if kind in kinds] for kind in POISON_KINDS}
    kinds = ", ".join(f"{kind} {len(found)}" for kind, found in rows.items() if found)
    check = Check.at_most(
        "training rows that look poisoned",
        len(suspected),
        settings.max_poisoned_rows,
        n=len(known),
        reason=f"{kinds}; read these rows and take out what is harmful" if suspected else "",
        items=tuple(item for item, _ in suspected),
    )
    return [check], _listed(rows)


def _matches(
    name: str,
    found: Sequence[Match],
    bound: float,
    items: Sequence[Sample],
    *,
    likeness: str = "is '{of}' of training; take it out of one",
) -> Check:
    reason = f"'{found[0].id}' {likeness.format(of=found[0].of)}" if found else ""
    share = len(found) / len(items)
    return Check.at_most(name, share, bound, n=len(items), reason=reason, items=tuple(match.id for match in found))


def _listed(rows: Mapping[Any, Sequence[str]]) -> dict[str, JSON]:
    return {kind: {"rows": len(found), "ids": list(found[:_LISTED])} for kind, found in rows.items()}
