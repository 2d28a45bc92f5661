from itertools import chain, islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsegate.contracts import EncodedSample
from sparsegate.data.datamodule import IGNORED, BatchLoader, SampleDataModule, collate
from sparsegate.errors import DataError

SAMPLES = [EncodedSample(str(number), (5,) * (1 + number % 7), (6, 7)) for number in range(50)]


def _loader(samples=SAMPLES, *, batch_size=4, seed=0):
    return BatchLoader(samples, batch_size=batch_size, pad_id=0, seed=seed)


def _ids(batches):
    return [batch["ids"] for batch in batches]


def test_collate_pads_on_the_right_and_supervises_the_response_only():
    batch = collate([EncodedSample("a", (5, 6), (7,)), EncodedSample("b", (5,), (8, 9, 3))], pad_id=2)
    assert batch["ids"] == ["a", "b"]
    assert batch["input_ids"].tolist() == [[5, 6, 7, 2], [5, 8, 9, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[IGNORED, IGNORED, 7, IGNORED], [IGNORED, 8, 9, 3]]


def test_a_response_that_holds_the_pad_token_is_still_supervised():
    batch = collate([EncodedSample("a", (5,), (0, 0)), EncodedSample("b", (5, 5, 5), (7, 0))], pad_id=0)
    assert batch["labels"][0].tolist() == [IGNORED, 0, 0, IGNORED, IGNORED]
    assert batch["attention_mask"][0].tolist() == [1, 1, 1, 0, 0]


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 50), batch_size=st.integers(1, 9), seed=st.none() | st.integers(0, 99))
def test_each_sample_comes_once_in_each_pass_and_the_length_is_true(count, batch_size, seed):
    loader = _loader(SAMPLES[:count], batch_size=batch_size, seed=seed)
    for _ in range(3):
        batches = _ids(loader)
        assert len(batches) == len(loader)
        assert sorted(chain(*batches)) == sorted(sample.id for sample in SAMPLES[:count])


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 30),
    batch_size=st.integers(1, 9),
    num_ranks=st.integers(1, 4),
    seed=st.none() | st.integers(0, 99),
)
def test_ranks_share_each_pass_without_loss_or_doubles_in_equally_many_batches(count, batch_size, num_ranks, seed):
    loaders = [
        BatchLoader(SAMPLES[:count], batch_size=batch_size, pad_id=0, seed=seed, rank=rank, num_ranks=num_ranks)
        for rank in range(num_ranks)
    ]
    parts = []
    for _ in range(2):
        passes = [list(loader) for loader in loaders]
        assert len({len(batches) for batches in passes} | {len(loader) for loader in loaders}) == 1
        supervised = [
            [sample_id for batch in batches if (batch["labels"] != IGNORED).any() for sample_id in batch["ids"]]
            for batches in passes
        ]
        assert sorted(chain(*supervised)) == sorted(sample.id for sample in SAMPLES[:count])
        assert all((batch["labels"] != IGNORED).any() for batch in passes[0])  # the first rank never runs out
        parts.append([set(ids) for ids in supervised])
    assert parts[0] == parts[1]


def test_passes_differ_and_the_same_seed_repeats_them():
    first, second, other = _loader(seed=1), _loader(seed=1), _loader(seed=2)
    passes = [_ids(first) for _ in range(3)]
    assert [_ids(second) for _ in range(3)] == passes
    assert passes[0] != passes[1] != passes[2]
    assert _ids(other) != passes[0]


def test_without_a_seed_the_order_is_by_length_each_time():
    loader = _loader(seed=None)
    lengths = [int(batch["attention_mask"].sum(1)[0]) for batch in loader]
    assert lengths == sorted(lengths)
    assert _ids(loader) == _ids(loader)


def test_the_order_does_not_depend_on_the_global_generator():
    first = _ids(_loader())
    torch.manual_seed(123)
    assert _ids(_loader()) == first


@settings(max_examples=30, deadline=None)
@given(batch_size=st.integers(1, 60), handed_out=st.integers(0, 60))
def test_a_loader_resumes_with_the_batch_that_would_have_come_next(batch_size, handed_out):
    def endless(loader):
        while True:
            # like a trainer, which counts the batches and does not ask for one more
            yield from islice(iter(loader), len(loader))

    loader = _loader(batch_size=batch_size)
    whole = endless(loader)
    _ids(islice(whole, handed_out))
    state = loader.state_dict()

    resumed = _loader(batch_size=batch_size)
    resumed.load_state_dict(state)
    first, rest = resumed, len(resumed) - state["position"]
    batches = _ids(islice(first, rest)) + _ids(islice(endless(resumed), 20))
    assert batches == _ids(islice(whole, rest + 20))


def test_a_pass_that_was_left_starts_again_from_its_beginning():
    loader = _loader()
    left = _ids(islice(loader, 3))
    assert _ids(loader)[:3] == left


@pytest.mark.parametrize(("handed_out", "expected"), [(0, 0), (5, 5), (13, 13), (20, 13)])
def test_the_first_pass_repeats_what_was_handed_out_and_moves_nothing(handed_out, expected):
    loader = _loader()
    original = _ids(_loader())
    for _ in range(2):
        if handed_out:
            taken = _ids(islice(loader, min(handed_out, len(loader))))
            handed_out -= len(taken)
    before = loader.state_dict()
    assert _ids(loader.first_pass()) == original[:expected]
    assert loader.state_dict() == before


def test_repeated_ids_are_refused():
    with pytest.raises(DataError, match="sample ids must be unique"):
        _loader([SAMPLES[0], SAMPLES[0]])


def test_an_id_in_both_training_and_validation_is_refused():
    with pytest.raises(DataError, match="sample id '3' stands in both training and validation"):
        SampleDataModule(SAMPLES[:4], SAMPLES[3:5], batch_size=2, pad_id=0)


def test_an_empty_training_set_is_refused():
    with pytest.raises(DataError, match="the training set is empty"):
        SampleDataModule([], batch_size=2, pad_id=0)


def test_calibration_sees_the_first_training_batches_and_does_not_move_them():
    data = SampleDataModule(SAMPLES, batch_size=4, pad_id=0, seed=5)
    calibration = _ids(islice(data.calibration_batches(), 3))
    assert _ids(data.train_dataloader())[:3] == calibration
    assert _ids(islice(data.calibration_batches(), 3)) == calibration
