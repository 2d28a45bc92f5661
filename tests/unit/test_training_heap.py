import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsegate.data.datamodule import collate
from sparsegate.sparse.layers import sparse_layers
from sparsegate.sparse.targets import decoder_layers
from sparsegate.training import heap
from sparsegate.training.heap import trim, trim_between
from sparsegate.training.module import SparseFineTuner


@pytest.fixture
def trims(monkeypatch):
    """Grows by one for each time the heap is trimmed."""
    trims = []
    monkeypatch.setattr(heap, "trim", lambda: trims.append(1))
    return trims


def _resident_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


@pytest.mark.skipif(sys.platform != "linux" or heap._malloc_trim() is None, reason="needs the C library glibc")
def test_trimming_gives_freed_memory_back_that_lies_between_kept_blocks():
    blocks = [torch.ones(16_000) for _ in range(1000)]  # small enough to come from the heap
    kept, freed = blocks[::10], sum(block.nbytes for block in blocks) * 9 // 10
    trim()
    before = _resident_bytes()
    del blocks
    trim()
    assert before - _resident_bytes() > freed / 2
    assert len(kept) == 100


def test_trimming_does_nothing_where_the_c_library_keeps_no_freed_memory(monkeypatch):
    monkeypatch.setattr(heap, "_malloc_trim", lambda: None)
    trim()


def test_the_heap_is_trimmed_after_every_fifth_layer_of_large_passes_that_keep_a_graph(trims):
    layers = nn.Sequential(*(nn.Identity() for _ in range(11)))
    large, small = torch.ones(1 << 18), torch.ones(1 << 10)
    with trim_between(layers):
        layers(large)
        assert len(trims) == 3
        layers(small)
        layers(large.to("meta"))
        with torch.no_grad():
            layers(large)
    layers(large)
    assert len(trims) == 3


def test_a_tuner_trims_between_its_layers_until_it_is_finished_and_trains_the_same_bits(
    any_model, make_samples, monkeypatch, trims
):
    batch = collate(make_samples(6), pad_id=0)
    tuner = SparseFineTuner(any_model, frozen_depth=0.0, selector="magnitude", trim_heap=True)
    tuner.select([])
    values = [layer.support.values for layer in sparse_layers(any_model).values()]
    plain = torch.autograd.grad(tuner.loss(batch), values)
    assert trims == []  # such batches are too small
    monkeypatch.setattr(heap, "_WORTHWHILE_BYTES", 0)
    monkeypatch.setattr(heap, "trim", lambda: (trims.append(1), trim()))
    trimmed = torch.autograd.grad(tuner.loss(batch), values)
    assert all(torch.equal(one, other) for one, other in zip(trimmed, plain, strict=True))
    assert len(trims) == 2  # once in each direction
    tuner.finish()
    assert not any(layer._forward_hooks for layer in decoder_layers(any_model)[1])
