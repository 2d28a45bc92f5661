"""What goes into models and what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Task = Literal["classification", "generation"]
Attack = Literal["direct", "role_play", "prefix_injection", "refusal_suppression", "translation"]


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
        response_tokens: Length of the expected response in the model's tokens, or None if it was not scored.
    """

    id: str
    expected: str
    predicted: str
    correct: bool
    nll_nats: float | None = None
    slices: Mapping[str, str] = field(default_factory=dict)
    response_tokens: int | None = None


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
