import json
from collections import Counter

import pytest

from sparsegate.contracts import Sample
from sparsegate.data import check_labels, label_set, load_prompts, load_samples, split_by_hash
from sparsegate.errors import DataError


def _file(tmp_path, rows):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _load(source, **options):
    return load_samples(
        source, **{"task": "classification", "prompt_column": "text", "response_column": "label", **options}
    )


def _samples(count):
    return [Sample(str(number), f"message number {number}", "a") for number in range(count)]


def test_samples_keep_order_and_slices_and_labels_lose_white_space(tmp_path):
    rows = [{"text": " hi ", "label": " a\n", "channel": "email"}, {"text": "ho", "label": "b", "channel": None}]
    first, second = _load(_file(tmp_path, rows), slice_columns=["channel"])
    assert (first.prompt, first.response, first.slices) == (" hi ", "a", {"channel": "email"})
    assert second.slices == {"channel": "(none)"}


def test_derived_ids_depend_on_content_alone_and_repeats_get_a_suffix(tmp_path):
    rows = [{"text": "hi", "label": "a"}, {"text": "ho", "label": "b"}, {"text": "hi", "label": "a"}]
    ids = [sample.id for sample in _load(_file(tmp_path, rows))]
    assert ids[2] == f"{ids[0]}-2"
    assert [sample.id for sample in _load(_file(tmp_path, rows[1:]))] == [ids[1], ids[0]]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"txt": "hi", "label": "a"}], {}, "has no column 'text'; did you mean 'txt'"),
        ([{"text": "hi", "label": "a"}], {"slice_columns": ["channel"]}, "has no column 'channel'"),
        ([{"text": "hi", "label": "a"}, {"text": " ", "label": "a"}], {}, "'text' is empty in row 2"),
        ([{"text": "hi", "label": "a"}, {"text": "ho"}], {}, "'label' is missing in row 2"),
        (
            [{"text": "hi", "label": "a", "id": "1"}, {"text": "ho", "label": "a", "id": "1"}],
            {"id_column": "id"},
            "id '1' stands in row 1 and again in row 2",
        ),
    ],
)
def test_bad_rows_are_one_clear_error(tmp_path, rows, options, message):
    with pytest.raises(DataError, match=message):
        _load(_file(tmp_path, rows), **options)


def test_a_limit_spreads_equally_over_the_categories_in_file_order(tmp_path):
    categories = ["a"] * 6 + ["b"] * 2 + ["c"] * 6
    rows = [{"id": str(n), "category": category, "prompt": f"p{n}"} for n, category in enumerate(categories)]
    source = _file(tmp_path, rows)
    kept = load_prompts(source, limit=7)
    assert Counter(row.category for row in kept) == {"a": 3, "b": 2, "c": 2}
    assert [row.id for row in kept] == ["0", "1", "2", "6", "7", "8", "9"]
    assert len(load_prompts(source)) == 14


def test_adding_data_never_moves_a_sample_to_the_other_side():
    _, held_before = split_by_hash(_samples(200), 0.2, seed=0)
    _, held_after = split_by_hash(_samples(400), 0.2, seed=0)
    assert held_before == [sample for sample in held_after if int(sample.id) < 200]
    assert 20 <= len(held_before) <= 60


def test_equal_prompts_land_on_the_same_side():
    samples = [*_samples(100), *(Sample(f"copy-{s.id}", f" {s.prompt.upper()}!", "b") for s in _samples(100))]
    rest, held = split_by_hash(samples, 0.3, seed=1)
    assert {f"copy-{s.id}" for s in held if not s.id.startswith("copy")} == {
        s.id for s in held if s.id.startswith("copy")
    }
    assert len(rest) + len(held) == 200


def test_another_seed_gives_another_split():
    assert split_by_hash(_samples(100), 0.5, seed=0) != split_by_hash(_samples(100), 0.5, seed=1)


def test_a_split_that_leaves_a_side_empty_is_refused():
    with pytest.raises(DataError, match="leaves none to hold back"):
        split_by_hash(_samples(2), 0.0001, seed=0)
    assert split_by_hash(_samples(2), 0, seed=0) == (_samples(2), [])


def test_an_unknown_evaluation_label_is_named_with_samples_and_suggestion():
    labels = label_set([Sample("1", "p", "refund"), Sample("2", "p", "delivery"), Sample("3", "p", "refund")])
    assert labels == ("delivery", "refund")
    check_labels([Sample("4", "p", "refund")], labels)
    with pytest.raises(DataError, match=r"unknown label 'refnud' in 1 evaluation sample \(5\); did you mean 'refund'"):
        check_labels([Sample("4", "p", "refund"), Sample("5", "p", "refnud")], labels)
