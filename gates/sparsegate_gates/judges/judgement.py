"""What a judge says about one answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


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


Judge = Callable[[str, str], Judgement]
"""Takes the prompt and the response."""
