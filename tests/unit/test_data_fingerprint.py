import pytest

from sparsegate.contracts import Sample
from sparsegate.data import (
    Leak,
    dataset_digest,
    find_duplicates,
    find_label_conflicts,
    find_leakage,
    normalise,
)

LONG = "my coffee machine shows a red light since the update on monday morning"


@pytest.mark.parametrize("text", ["where's MY parcel", "  Where\u2019s my-parcel?! ", "where_s my\nparcel"])
def test_case_punctuation_and_spacing_do_not_matter(text):
    assert normalise(text) == "where s my parcel"


def test_texts_of_signs_only_stay_different():
    assert normalise("😀") != normalise("😡")


def test_the_digest_ignores_order_and_sees_every_field():
    first, second = Sample("1", "p", "a"), Sample("2", "q", "b", {"channel": "email"})
    digest = dataset_digest([first, second])
    assert dataset_digest([second, first]) == digest
    assert dataset_digest([first, Sample("2", "q", "b", {"channel": "chat"})]) != digest
    assert dataset_digest([first]) != digest


def test_each_leaked_evaluation_item_is_reported_once_with_its_strongest_kind():
    train = [Sample("t1", LONG, "a"), Sample("t2", "hello there", "b"), Sample("t3", "unrelated", "b")]
    evaluation = [
        Sample("e1", LONG, "a"),
        Sample("e2", "Hello, THERE!", "b"),
        Sample("e3", f"hi, {LONG[:50]} today", "a"),
        Sample("e4", "something new", "a"),
    ]
    assert find_leakage(train, evaluation) == [
        Leak("exact", "t1", "e1"),
        Leak("normalised", "t2", "e2"),
        Leak("ngram", "t1", "e3"),
    ]


def test_a_shorter_run_of_common_words_is_no_leak():
    shared = " ".join(LONG.split()[:7])
    assert find_leakage([Sample("t", f"{shared} x", "a")], [Sample("e", f"{shared} y", "a")]) == []
    assert len(find_leakage([Sample("t", f"{shared} x", "a")], [Sample("e", f"{shared} y", "a")], ngram=7)) == 1


def test_duplicates_and_label_conflicts_are_told_apart():
    samples = [
        Sample("1", "Hi there", "a"),
        Sample("2", "hi there!", "a"),
        Sample("3", "hi  there", "b"),
        Sample("4", "bye", "a"),
    ]
    assert find_duplicates(samples) == [("1", "2")]
    assert find_label_conflicts(samples) == [("1", "2", "3")]
