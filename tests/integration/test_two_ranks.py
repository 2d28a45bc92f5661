"""Two processes on gloo train what one process trains on the same batches."""

import json
import subprocess
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

import lightning as L
import pytest
import torch

from sparsegate.data.datamodule import BatchLoader
from sparsegate.sparse.delta import read_delta
from sparsegate.training.module import SparseFineTuner

SCRIPT = Path(__file__).parent / "train_on_two_ranks.py"
COUNT, EPOCHS, BATCH_SIZE = 25, 2, 4  # 13 and 12 samples: the second rank has a batch less
BATCHES_PER_RANK = 4
TRAINING = {"selector": "fisher", "density": 0.2, "frozen_depth": 0.667, "learning_rate": 1e-3, "seed": 3}
CLIP = 0.5


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Returns the delta and what each rank saw."""
    folder = tmp_path_factory.mktemp("ranks")
    options = {
        "count": COUNT,
        "epochs": EPOCHS,
        "batch_size": BATCH_SIZE,
        "accumulate_batches": 2,
        "gradient_clip": CLIP,
        **TRAINING,
    }
    command = [sys.executable, str(SCRIPT), str(folder), json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
    return read_delta(folder / "run" / "delta.safetensors"), ranks, folder / "run"


class _BothRanks:
    """The batches of both ranks, in turn."""

    def __init__(self, samples):
        place = {"batch_size": BATCH_SIZE, "pad_id": 0, "seed": TRAINING["seed"], "num_ranks": 2}
        self.loaders = [BatchLoader(samples, rank=rank, **place) for rank in range(2)]

    def __len__(self):
        return 2 * BATCHES_PER_RANK

    def __iter__(self):
        for batches in zip(*self.loaders, strict=True):
            yield from batches


def test_two_processes_train_what_one_trains_on_the_same_batches(two_ranks, make_model, make_samples, tmp_path):
    samples = make_samples(COUNT)
    tuner = SparseFineTuner(make_model("llama"), **TRAINING)
    tuner.select(BatchLoader(samples, batch_size=BATCH_SIZE, pad_id=0, seed=TRAINING["seed"]))
    norms = []
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        accumulate_grad_batches=4,
        gradient_clip_val=CLIP,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    tuner.on_before_zero_grad = lambda optimizer: norms.append(_gradient_norm(optimizer))
    trainer.fit(tuner, train_dataloaders=_BothRanks(samples))
    assert all(norm == pytest.approx(CLIP, rel=1e-3) for norm in norms[1:])  # clipping was at work

    delta, ranks, _ = two_ranks
    expected = tuner.delta(base_digest="abc").entries
    assert ranks[0]["steps"] == trainer.global_step == EPOCHS * BATCHES_PER_RANK / 2
    assert delta.entries.keys() == expected.keys()
    for name, entry in expected.items():
        assert torch.equal(delta.entries[name].ids, entry.ids)
        assert not torch.equal(entry.new, entry.old)
        torch.testing.assert_close(delta.entries[name].new, entry.new, rtol=0, atol=1e-5)


def _gradient_norm(optimizer):
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients]))) if gradients else 0.0


def test_masks_are_the_same_on_all_ranks(two_ranks):
    _, (first, second), _ = two_ranks
    assert first["ids"] == second["ids"] != {}


def test_a_step_sends_one_fp32_number_for_each_trained_value_and_no_buffers(two_ranks):
    _, ranks, _ = two_ranks
    for seen in ranks:
        # nothing in the batches that are only accumulated
        assert seen["gradient_bytes"] == [0, 4 * seen["num_trainable"]] * (EPOCHS * BATCHES_PER_RANK // 2)
        assert not any(seen["buffers_are_sent"])


def test_each_epoch_deals_every_sample_to_one_rank_once(two_ranks):
    _, ranks, _ = two_ranks
    assert all(len(seen["samples"]) == EPOCHS * BATCHES_PER_RANK for seen in ranks)
    for epoch in range(EPOCHS):
        part = slice(epoch * BATCHES_PER_RANK, (epoch + 1) * BATCHES_PER_RANK)
        counts = Counter(chain.from_iterable(batch for seen in ranks for batch in seen["samples"][part]))
        assert counts == Counter({f"s{number}": 1 for number in range(COUNT)})


def test_both_ranks_return_the_same_figures_and_the_first_writes_the_delta_only(two_ranks):
    _, (first, second), folder = two_ranks
    assert first["metrics"] == second["metrics"]
    assert [path.name for path in folder.iterdir()] == ["delta.safetensors"]
