"""How good are the answers: figures for reports. Verdicts rest on the intervals, not on these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ClassFigures:
    """How one label fares.

    Args:
        label: The label.
        n: Items with this label.
        correct: Items among them that were answered with it.
        recall: Share of the items with this label that were found.
        precision: Share of the answers with this label that were right; 0 where it was never answered.
        f1: Harmonic mean of the two.
    """

    label: str
    n: int
    correct: int
    recall: float
    precision: float
    f1: float


@dataclass(frozen=True)
class ClassificationFigures:
    """How a set of answers fares.

    Args:
        accuracy: Share of right answers.
        balanced_accuracy: Mean recall over the labels.
        macro_f1: Mean F1 over the labels.
        classes: One entry for each label, in order of the label.
        outside_labels: Answers that are no label at all.
    """

    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    classes: tuple[ClassFigures, ...]
    outside_labels: int


def classification_figures(expected: Sequence[str], predicted: Sequence[str]) -> ClassificationFigures:
    """Compare answers with the expected labels.

    Args:
        expected: The right label of each item.
        predicted: The model's answer to each item, in the same order; an answer that is no label counts as wrong.

    Returns:
        Figures over the labels that occur in ``expected``.

    Raises:
        ValueError: If there are no items or the lengths differ.

    Example:
        >>> figures = classification_figures(["a", "a", "b", "b"], ["a", "b", "b", "none"])
        >>> f"{figures.accuracy:.2f} {figures.macro_f1:.3f} {figures.outside_labels}"
        '0.50 0.583 1'
    """
    if not expected or len(expected) != len(predicted):
        raise ValueError(f"needs as many answers as labels and at least one, got {len(predicted)} and {len(expected)}")
    import torch
    from torchmetrics.functional.classification import multiclass_f1_score, multiclass_precision, multiclass_recall

    labels = sorted(set(expected))
    index = {label: number for number, label in enumerate(labels)}
    # one class more than there are labels takes the answers that are no label
    outside = len(labels)
    target = torch.tensor([index[label] for label in expected])
    answers = torch.tensor([index.get(answer, outside) for answer in predicted])
    recall, precision, f1 = (
        score(answers, target, num_classes=outside + 1, average="none").double()[:outside]
        for score in (multiclass_recall, multiclass_precision, multiclass_f1_score)
    )
    right = answers == target
    classes = tuple(
        ClassFigures(
            label=label,
            n=int((target == number).sum()),
            correct=int((right & (target == number)).sum()),
            recall=float(recall[number]),
            precision=float(precision[number]),
            f1=float(f1[number]),
        )
        for number, label in enumerate(labels)
    )
    return ClassificationFigures(
        accuracy=float(right.double().mean()),
        balanced_accuracy=float(recall.mean()),
        macro_f1=float(f1.mean()),
        classes=classes,
        outside_labels=int((answers == outside).sum()),
    )
