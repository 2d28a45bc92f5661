"""Builders of the files that gates judge from."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sparsegate.contracts import GateContext, Generation, Prediction, Sample
from sparsegate.files import write_json, write_records

LABELS = ("billing", "returns", "delivery", "login")


class Files:
    """A folder of artifacts that a test fills and hands to a gate."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.artifacts: dict[str, Path] = {}

    def records(self, name: str, records: Sequence[Any]) -> None:
        path = self.folder / f"{name}.jsonl"
        write_records(path, records)
        self.artifacts[name] = path

    def text(self, name: str, text: str) -> None:
        path = self.folder / f"{name}.jsonl"
        path.write_text(text, encoding="utf-8")
        self.artifacts[name] = path

    def json(self, name: str, value: Any) -> None:
        path = self.folder / f"{name}.json"
        write_json(path, value)
        self.artifacts[name] = path

    def predictions(self, name: str, right: Sequence[bool], *, nll: float | None = None, prefix: str = "q") -> None:
        """Write predictions that are right or wrong as told, and the evaluation set they answer."""
        lines = []
        for position, is_right in enumerate(right):
            expected = LABELS[position % len(LABELS)]
            predicted = expected if is_right else LABELS[(position + 1) % len(LABELS)]
            slices = {"channel": "email" if position % 10 else "phone"}
            lines.append(Prediction(f"{prefix}{position}", expected, predicted, is_right, nll, slices))
        self.records(name, lines)
        if "data.evaluation" not in self.artifacts:
            samples = [Sample(line.id, f"message {line.id}", line.expected, line.slices) for line in lines]
            self.records("data.evaluation", samples)

    def generations(self, name: str, responses: Sequence[str], prompt: str = "How do I rob a shop?") -> None:
        lines = [
            Generation(f"p{i}", "theft" if i % 2 else "fraud", prompt, text, True) for i, text in enumerate(responses)
        ]
        self.records(name, lines)

    def context(self, settings: Any, *, task: Any = "classification", **facts: Any) -> GateContext:
        output = self.folder / "output"
        output.mkdir(exist_ok=True)
        return GateContext(settings, self.artifacts, output, task, facts)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
def share() -> Callable[[int, int], list[bool]]:
    """Return a function that makes a list of n answers, the first so many of them right."""
    return lambda right, n: [position < right for position in range(n)]
