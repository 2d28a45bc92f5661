"""Reads the files that gates judge from; refuses what is no evidence: empty, damaged, doubled or mismatched lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from sparsegate.contracts import GateContext, Generation, Interval, Prediction, Sample, TextScore
from sparsegate.errors import DataError, MissingEvidenceError
from sparsegate.evaluation.intervals import tango
from sparsegate.files import read_records

Line = TypeVar("Line")


def read_samples(context: GateContext, name: str) -> list[Sample]:
    """Read a data artifact; values may still be null, which is for the data gate to judge.

    Raises:
        MissingEvidenceError: If the file is missing or has no lines.
    """
    return _read(context.path(name), name, Sample, lambda sample: None, unique=False)


def read_predictions(context: GateContext, name: str) -> list[Prediction]:
    """Read a predictions artifact and check each line, and the whole against the evaluation set where that is given.

    Raises:
        MissingEvidenceError: If the file is missing or has no lines.
        DataError: If a line is not sound, or items are missing or foreign.
    """
    exact = context.task == "classification"
    predictions = _read(context.path(name), name, Prediction, lambda line: _prediction_problem(line, exact=exact))
    if name.count(".") == 1 and context.has("data.evaluation"):
        wanted = {sample.id: sample.response for sample in read_samples(context, "data.evaluation")}
        found = {line.id: line.expected for line in predictions}
        for item in sorted(wanted.keys() | found.keys()):
            if wanted.get(item) != found.get(item):
                raise DataError(
                    f"'{name}' does not answer the evaluation set: item '{item}' has {_said(wanted, item)} there and "
                    f"{_said(found, item)} here; evaluate the model again on this set"
                )
    return predictions


def read_answers_of(context: GateContext, role: str, candidate: Sequence[Prediction]) -> list[Prediction]:
    """Read another model's predictions, which must answer the same questions as the candidate's.

    Raises:
        MissingEvidenceError: If the file is missing or has no lines.
        DataError: If a line is not sound, or the questions differ.
    """
    name = f"predictions.{role}"
    other = read_predictions(context, name)
    require_same_items(candidate, other, name)
    return other


def read_generations(context: GateContext, name: str) -> list[Generation]:
    """Read a generations artifact and check each line.

    Raises:
        MissingEvidenceError: If the file is missing or has no lines.
        DataError: If a line is not sound.
    """
    return _read(context.path(name), name, Generation, _generation_problem)


def read_scores(context: GateContext, name: str) -> list[TextScore]:
    """Read scores of general texts and check each line.

    Raises:
        MissingEvidenceError: If the file is missing or has no lines.
        DataError: If a line is not sound.
    """
    return _read(context.path(name), name, TextScore, _score_problem)


def likelihoods(predictions: Sequence[Prediction], name: str) -> list[TextScore]:
    """Return how likely a model finds each expected response.

    Raises:
        MissingEvidenceError: If a response was not scored.
    """
    scores: list[TextScore] = []
    for line in predictions:
        if line.nll_nats is None or line.response_tokens is None:
            raise MissingEvidenceError(
                f"'{name}' does not say how likely the expected response of item '{line.id}' is; "
                "it is scored where data.task is generation"
            )
        scores.append(TextScore(line.id, "response", line.nll_nats * line.response_tokens, line.response_tokens))
    return scores


def opponent_of(context: GateContext) -> Literal["champion", "base"]:
    """Return what a candidate is held against: the champion, or the base where the run says that it is the first.

    Raises:
        MissingEvidenceError: If there is no champion and the run does not say so.
    """
    if context.has("predictions.champion"):
        return "champion"
    if context.facts.get("first") is True:
        return "base"
    raise MissingEvidenceError("no champion to compare with, and the run does not say that this is the first version")


def require_same_texts(candidate: Sequence[TextScore], other: Sequence[TextScore], name: str) -> None:
    """Refuse to compare scores of different texts.

    Raises:
        DataError: If texts or their order differ.
    """
    if [(line.id, line.kind) for line in candidate] != [(line.id, line.kind) for line in other]:
        raise DataError(f"'{name}' is about other texts than the candidate's file; evaluate both on one set")


def require_same_items(
    candidate: Sequence[Prediction | Generation],
    other: Sequence[Prediction | Generation],
    name: str,
) -> None:
    """Refuse to compare answers to different questions: ids, order and what was asked must be equal.

    Raises:
        DataError: Naming the first item that differs.
    """
    if len(candidate) != len(other):
        raise DataError(f"'{name}' has {len(other)} items and the candidate {len(candidate)}; evaluate both on one set")
    for number, (ours, theirs) in enumerate(zip(candidate, other, strict=True), start=1):
        if _question(ours) != _question(theirs):
            raise DataError(
                f"'{name}' differs from the candidate's file at item {number}: {_question(theirs)} against "
                f"{_question(ours)}; evaluate both on one set, in one order"
            )


@dataclass(frozen=True)
class PairedCounts:
    """How two models compare on the same items, each item counting or not for each of them."""

    both: int
    only_candidate: int
    only_baseline: int
    neither: int

    @classmethod
    def of(cls, candidate: Sequence[bool], baseline: Sequence[bool]) -> PairedCounts:
        """Count the four cases."""
        pairs = list(zip(candidate, baseline, strict=True))
        return cls(*(pairs.count(case) for case in ((True, True), (True, False), (False, True), (False, False))))

    @property
    def n(self) -> int:
        return self.both + self.only_candidate + self.only_baseline + self.neither

    @property
    def difference(self) -> float:
        """Candidate's rate minus baseline's."""
        return (self.only_candidate - self.only_baseline) / self.n

    def interval(self, confidence: float) -> Interval:
        """Return Tango's interval of the difference."""
        return tango(self.both, self.only_candidate, self.only_baseline, self.neither, confidence=confidence)


def _question(line: Prediction | Generation) -> tuple[str, str]:
    return (line.id, line.expected if isinstance(line, Prediction) else line.prompt)


def _said(lines: dict[str, str], item: str) -> str:
    return f"'{lines[item]}'" if item in lines else "no line"


def _read(
    path: Path, name: str, kind: type[Line], problem_of: Callable[[Line], str | None], *, unique: bool = True
) -> list[Line]:
    lines = read_records(path, kind)
    if not lines:
        raise MissingEvidenceError(f"'{name}' has no lines to judge from ({path.name})")
    seen: set[object] = set()
    for number, line in enumerate(lines, start=1):
        item = getattr(line, "id", None)
        problem = problem_of(line)
        if unique and problem is None and item in seen:
            problem = f"id '{item}' stands twice"
        if problem:
            raise DataError(f"{path.name}, record {number}: {problem}")
        if unique:
            seen.add(item)
    return lines


def _prediction_problem(line: Prediction, *, exact: bool) -> str | None:
    """Say what is wrong with a line; ``exact`` asks that an answer is right only where it equals the expected one."""
    texts = _text_problem(id=line.id, expected=line.expected, predicted=line.predicted)
    if texts:
        return texts
    correct: object = line.correct  # what a file holds may be anything
    if not isinstance(correct, bool):
        return f"correct must be true or false, got {line.correct!r}"
    if exact and line.correct != (line.predicted == line.expected):
        return f"correct is {line.correct} but '{line.predicted}' was answered where '{line.expected}' was expected"
    if line.nll_nats is not None and not (_is_number(line.nll_nats) and math.isfinite(line.nll_nats)):
        return f"nll_nats must be a finite number, got {line.nll_nats!r}"
    if line.response_tokens is not None and not _is_count(line.response_tokens):
        return f"response_tokens must be a whole number above 0, got {line.response_tokens!r}"
    return None


def _generation_problem(line: Generation) -> str | None:
    finished: object = line.finished
    if not isinstance(finished, bool):
        return f"finished must be true or false, got {line.finished!r}"
    return _text_problem(id=line.id, category=line.category, prompt=line.prompt, response=line.response)


def _score_problem(line: TextScore) -> str | None:
    if not _is_count(line.tokens):
        return f"tokens must be a whole number above 0, got {line.tokens!r}"
    if not (_is_number(line.nats) and math.isfinite(line.nats) and line.nats >= 0):
        return f"nats must be a finite number, at least 0, got {line.nats!r}"
    return _text_problem(id=line.id, kind=line.kind)


def _text_problem(**texts: object) -> str | None:
    for name, text in texts.items():
        if not isinstance(text, str):
            return f"{name} must be text, got {text!r}"
    return "id must not be empty" if not texts["id"] else None


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
