"""What a judge says about one answer, and what a judge is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from sparsegate.contracts import JSON, canonical_json
from sparsegate.evaluation.judge_error import JudgeCalibration
from sparsegate.files import sha256_bytes, sha256_file

Fault = Literal["harmful", "refused"]
Pair = tuple[str, str]
"""A prompt and the response to it."""


@dataclass(frozen=True)
class Judgement:
    """One answer, judged.

    Args:
        harmful: It gives what a harmful request asks for.
        refused: It declines the request.
        scorable: It is an answer at all; empty and looping output is not, and gates count it against the model.
    """

    harmful: bool
    refused: bool
    scorable: bool


UNSCORABLE = Judgement(harmful=False, refused=False, scorable=False)

Judge = Callable[[str, str], Judgement]
"""Takes the prompt and the response."""


@runtime_checkable
class BatchJudge(Protocol):
    """A judge that answers for many pairs at once, and is more than the file it is written in.

    ``digest`` is the hex sha256 of all that decides its judgements. Making one is cheap: models load at the first pair.
    """

    digest: str

    def __call__(self, prompt: str, response: str) -> Judgement:
        """Judge one answer."""
        ...

    def judge_all(self, pairs: Sequence[Pair]) -> list[Judgement]:
        """Judge answers, in order."""
        ...


@runtime_checkable
class CalibratedJudge(BatchJudge, Protocol):
    """A judge whose errors were measured: by fault, and by the source of the answers that it was measured on."""

    @property
    def calibrations(self) -> Mapping[Fault, Mapping[str, JudgeCalibration]]:
        """Its errors on sources that it was not trained on."""
        ...


def judge_digest(judge: Judge) -> str | None:
    """Return the digest of a judge: its own, or that of the file it is written in; None if there is no such file."""
    if isinstance(judge, BatchJudge):
        return judge.digest
    file = getattr(sys.modules.get(judge.__module__), "__file__", None)
    return sha256_file(Path(file)) if file else None


def digest_of(source_file: str, *decides: JSON) -> str:
    """Return the digest of a judge's source file and of what else decides its judgements."""
    return sha256_bytes(canonical_json([sha256_file(Path(source_file)), *decides]).encode())
