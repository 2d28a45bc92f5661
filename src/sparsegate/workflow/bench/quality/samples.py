"""Who is trained on what: evaluation, validation and training samples that never meet."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sparsegate.contracts import Sample
from sparsegate.data import ChatTemplate, check_labels, label_set, load_samples, normalise, read_rows
from sparsegate.data.sources.text import read_utf8
from sparsegate.errors import DataError, did_you_mean
from sparsegate.workflow.bench.quality.config import GeneralText, QualityData, SkillsData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Split(NamedTuple):
    """The samples of a data set; no prompt stands in two parts, whatever its case and punctuation."""

    pool: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    evaluation: tuple[Sample, ...]
    labels: tuple[str, ...]


def split(name: str, data: QualityData) -> Split:
    """Read a data set and split it by a hash of the prompts, the same for all seeds.

    Args:
        name: The data set's name, for errors.
        data: The data set.

    Raises:
        DataError: If a file can't be used, or has too few samples.
    """
    samples = _in_hash_order(_load(data, data.train), "split")
    held = samples if data.evaluation is None else _in_hash_order(_load(data, data.evaluation), "split")
    evaluation, rest = _take(held, data.evaluation_size)
    rest = _apart_from(evaluation, rest if data.evaluation is None else samples)
    validation, rest = _take(rest, data.validation_size)
    pool = _apart_from(validation, rest)
    wanted = max(data.train_sizes)
    if len(evaluation) < data.evaluation_size or len(validation) < data.validation_size or len(pool) < wanted:
        raise DataError(
            f"data.{name} has {len(evaluation)} samples for evaluation_size {data.evaluation_size}, "
            f"{len(validation)} for validation_size {data.validation_size} and {len(pool)} for the largest of "
            f"train_sizes, {wanted}; lower them or give a larger file"
        )
    labels = label_set(samples) if data.task == "classification" else ()
    if labels:
        check_labels(evaluation, labels)
    return Split(tuple(pool), tuple(validation), tuple(evaluation), labels)


def draw(pool: Iterable[Sample], size: int, *, seed: int) -> list[Sample]:
    """Draw the training samples of one seed; fewer of them are a part of more of them."""
    return _in_hash_order(pool, f"seed {seed}")[:size]


def check_lengths(
    name: str, data: QualityData, parts: Split, *, seeds: Iterable[int], tokenizer: PreTrainedTokenizerBase
) -> None:
    """See that whatever will be trained or judged on fits into ``max_tokens``, before anything runs.

    Args:
        name: The data set's name, for errors.
        data: The data set.
        parts: Its samples.
        seeds: The seeds that training samples are drawn by.
        tokenizer: The base model's tokenizer.

    Raises:
        DataError: Naming the first sample that does not fit.
    """
    template = ChatTemplate(tokenizer, system_prompt=data.system_prompt, max_tokens=data.max_tokens)
    drawn = {sample.id: sample for seed in seeds for sample in draw(parts.pool, max(data.train_sizes), seed=seed)}
    for sample in (*parts.evaluation, *parts.validation, *drawn.values()):
        try:
            template.encode(sample)
        except DataError as error:
            raise DataError(f"data.{name}: {error}") from None


def general_texts(text: GeneralText) -> list[str]:
    """Read the general text, one entry for each row, or one for all of a ``.txt`` file.

    Raises:
        DataError: If the file can't be used or lacks the column.
    """
    if text.source.endswith(".txt"):
        from pathlib import Path

        return [read_utf8(Path(text.source))]
    rows = read_rows(text.source)
    texts = [row[text.column] for row in rows if row.get(text.column, "").strip()]
    if not texts:
        known = {column for row in rows for column in row}
        raise DataError(f"{text.source} has no text in column '{text.column}'{did_you_mean(text.column, known)}")
    return texts


def skills_samples(skills: SkillsData) -> list[Sample]:
    """Read the questions of a general-skills set.

    Raises:
        DataError: If the file can't be used.
    """
    return load_samples(
        skills.source,
        task=skills.task,
        prompt_column=skills.prompt_column,
        response_column=skills.response_column,
    )


def _load(data: QualityData, source: str) -> list[Sample]:
    return load_samples(
        source,
        task=data.task,
        prompt_column=data.prompt_column,
        response_column=data.response_column,
        id_column=data.id_column,
    )


def _in_hash_order(samples: Iterable[Sample], salt: str) -> list[Sample]:
    def place(sample: Sample) -> tuple[bytes, str]:
        return hashlib.sha256(f"{salt}\0{normalise(sample.prompt)}".encode()).digest(), sample.id

    return sorted(samples, key=place)


def _take(samples: Sequence[Sample], count: int) -> tuple[list[Sample], list[Sample]]:
    return list(samples[:count]), list(samples[count:])


def _apart_from(held: Iterable[Sample], samples: Iterable[Sample]) -> list[Sample]:
    prompts = {normalise(sample.prompt) for sample in held}
    return [sample for sample in samples if normalise(sample.prompt) not in prompts]
