import pytest

from sparsegate.evaluation.metrics import classification_figures


def test_figures_equal_the_hand_count() -> None:
    figures = classification_figures(["a", "a", "a", "b", "b", "c"], ["a", "a", "b", "b", "c", "c"])
    assert figures.accuracy == pytest.approx(4 / 6)
    assert [(entry.label, entry.n, entry.correct) for entry in figures.classes] == [
        ("a", 3, 2),
        ("b", 2, 1),
        ("c", 1, 1),
    ]
    assert [entry.recall for entry in figures.classes] == pytest.approx([2 / 3, 1 / 2, 1])
    assert [entry.precision for entry in figures.classes] == pytest.approx([1, 1 / 2, 1 / 2])
    assert figures.macro_f1 == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)


def test_answers_outside_the_labels_count_as_wrong() -> None:
    figures = classification_figures(["a", "b"], ["", "B"])
    assert (figures.accuracy, figures.macro_f1, figures.outside_labels) == (0.0, 0.0, 2)


def test_a_single_label_can_be_judged() -> None:
    assert classification_figures(["a", "a"], ["a", "b"]).balanced_accuracy == 0.5


@pytest.mark.parametrize(("expected", "predicted"), [([], []), (["a"], [])])
def test_no_items_give_no_figures(expected: list[str], predicted: list[str]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        classification_figures(expected, predicted)
