"""Rows become samples: checked, with ids, split by a stable hash."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from sparsegate.contracts import Sample, Task, canonical_json
from sparsegate.data.fingerprint import normalise
from sparsegate.data.sources import Row, read_rows
from sparsegate.errors import DataError, MissingColumnError, did_you_mean
from sparsegate.files import sha256_bytes

NO_SLICE = "(none)"


@dataclass(frozen=True)
class PromptRow:
    """One prompt of a safety set.

    Args:
        id: Unique within its set.
        category: What the prompt is about.
        prompt: What the user writes.
        system_prompt: It is asked behind the task's system prompt, as users meet the model.
    """

    id: str
    category: str
    prompt: str
    system_prompt: bool = False


def load_samples(
    source: str,
    *,
    task: Task,
    prompt_column: str,
    response_column: str,
    id_column: str | None = None,
    slice_columns: Sequence[str] = (),
) -> list[Sample]:
    """Read the samples of a source in its order.

    Args:
        source: See :func:`sparsegate.data.sources.read_rows`.
        task: For ``classification`` the response is a label: white space around it is dropped.
        prompt_column: Column with what the user writes.
        response_column: Column with what the model must answer.
        id_column: Column with unique ids; None derives ids from prompt and response.
        slice_columns: Columns kept as slices; a missing value becomes ``"(none)"``.

    Raises:
        DataError: For a missing column, an empty value or a repeated id, with the row.
    """
    rows = read_rows(source)
    _require_columns(
        source, rows, [prompt_column, response_column, *([id_column] if id_column else []), *slice_columns]
    )
    prompts = _values(source, rows, prompt_column)
    responses = _values(source, rows, response_column)
    if task == "classification":
        responses = [label.strip() for label in responses]
    if id_column:
        ids = _unique_ids(source, _values(source, rows, id_column))
    else:
        ids = _content_ids(zip(prompts, responses, strict=True))
    return [
        Sample(sample_id, prompt, response, {column: row.get(column) or NO_SLICE for column in slice_columns})
        for sample_id, prompt, response, row in zip(ids, prompts, responses, rows, strict=True)
    ]


def load_prompts(source: str, *, limit: int | None = None) -> list[PromptRow]:
    """Read a safety set (columns id, category, prompt) in its order.

    Args:
        source: See :func:`sparsegate.data.sources.read_rows`.
        limit: Keep only so many, spread equally over the categories: the first of each, then the second, and so on.

    Raises:
        DataError: For a missing column, an empty value or a repeated id, with the row.
    """
    rows = read_rows(source)
    _require_columns(source, rows, ["id", "category", "prompt"])
    ids = _unique_ids(source, _values(source, rows, "id"))
    categories = _values(source, rows, "category")
    prompts = [PromptRow(*row) for row in zip(ids, categories, _values(source, rows, "prompt"), strict=True)]
    if limit is None or limit >= len(prompts):
        return prompts
    seen: Counter[str] = Counter()
    turns = []
    for position, row in enumerate(prompts):
        turns.append((seen[row.category], row.category, position))
        seen[row.category] += 1
    return [prompts[position] for position in sorted(position for _, _, position in sorted(turns)[:limit])]


def split_by_hash(samples: Sequence[Sample], fraction: float, *, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Hold back about ``fraction`` of the samples, chosen by a hash of the normalised prompt alone.

    A sample's side never changes when others are added, and equal prompts land on the same side.

    Args:
        samples: All samples.
        fraction: Share to hold back, in [0, 1).
        seed: Another seed gives another split.

    Returns:
        The rest and the held-back samples, each in the given order.

    Raises:
        DataError: If a fraction above 0 leaves either side empty.
    """
    assert 0 <= fraction < 1
    rest: list[Sample] = []
    held: list[Sample] = []
    for sample in samples:
        (held if _hash(sample, seed) < fraction * 2**64 else rest).append(sample)
    if fraction > 0 and not (rest and held):
        side = "to hold back" if rest else "to train on"
        raise DataError(
            f"splitting {len(samples)} samples by {fraction:g} leaves none {side}; add data or give a separate file"
        )
    return rest, held


def limit_by_hash(samples: Sequence[Sample], limit: int | None, *, seed: int) -> list[Sample]:
    """Keep at most ``limit`` samples, chosen by a hash of the normalised prompt alone, in the given order."""
    if limit is None or limit >= len(samples):
        return list(samples)
    chosen = sorted(range(len(samples)), key=lambda position: _hash(samples[position], seed))[:limit]
    return [samples[position] for position in sorted(chosen)]


def _hash(sample: Sample, seed: int) -> int:
    digest = hashlib.sha256(f"{seed}\0{normalise(sample.prompt)}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def label_set(samples: Iterable[Sample]) -> tuple[str, ...]:
    """Return the distinct responses, sorted."""
    return tuple(sorted({sample.response for sample in samples}))


def check_labels(evaluation: Iterable[Sample], labels: Collection[str]) -> None:
    """Check that every evaluation sample has one of the labels that the model is trained on.

    Raises:
        DataError: Naming each unknown label, samples that have it, and the likely meant label.
    """
    unknown: dict[str, list[str]] = {}
    for sample in evaluation:
        if sample.response not in labels:
            unknown.setdefault(sample.response, []).append(sample.id)
    if unknown:
        lines = [
            f"unknown label '{label}' in {len(ids)} evaluation sample{'s' if len(ids) > 1 else ''}"
            f" ({', '.join(ids[:3])}){did_you_mean(label, labels)}"
            for label, ids in sorted(unknown.items())
        ]
        raise DataError("\n".join([*lines, "add training samples for these labels or correct them"]))


def _require_columns(source: str, rows: Sequence[Row], wanted: Sequence[str]) -> None:
    found = {column for row in rows for column in row}
    for column in wanted:
        if column not in found:
            raise MissingColumnError(column, f"{source} has no column '{column}'{did_you_mean(column, found)}")


def _values(source: str, rows: Sequence[Row], column: str) -> list[str]:
    """Return a column that must have a value in each row."""
    for number, row in enumerate(rows, start=1):
        if not row.get(column, "").strip():
            state = "is empty" if column in row else "is missing"
            raise DataError(f"{source}: '{column}' {state} in row {number}; give it a value or remove the row")
    return [row[column] for row in rows]


def _unique_ids(source: str, ids: list[str]) -> list[str]:
    first: dict[str, int] = {}
    for number, row_id in enumerate(ids, start=1):
        if row_id in first:
            raise DataError(
                f"{source}: id '{row_id}' stands in row {first[row_id]} and again in row {number}; ids must be unique"
            )
        first[row_id] = number
    return ids


def _content_ids(contents: Iterable[tuple[str, str]]) -> list[str]:
    """Return ids that depend on the content only; a repeat gets the suffix ``-2``, ``-3`` and so on."""
    seen: Counter[str] = Counter()
    ids = []
    for content in contents:
        digest = sha256_bytes(canonical_json(list(content)).encode())[:16]
        seen[digest] += 1
        ids.append(digest if seen[digest] == 1 else f"{digest}-{seen[digest]}")
    return ids
