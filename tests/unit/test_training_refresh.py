import os
import socket
import subprocess
import sys
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from sparsegate.config import TrainingConfig
from sparsegate.data.datamodule import BatchLoader, SampleDataModule, collate
from sparsegate.errors import SparsegateError, UsageError
from sparsegate.sparse.layers import SparseLinear, sparse_layers
from sparsegate.sparse.optimizer import make_optimizer
from sparsegate.training.loss import supervised_loss
from sparsegate.training.module import SparseFineTuner
from sparsegate.training.prefix_cache import PrefixCache
from sparsegate.training.refresh import RefreshCallback, refresh
from sparsegate.training.state_file import StateFile

ALWAYS = {"below": 1.0, "fraction": 0.5, "margin": 1.0}
NUM_TOKENS = 96
KINDS = ("element", "column", "row", "block")


def _stepped(model, batches, *, steps=3, **options):
    """A tuner and its optimizer after some steps."""
    tuner = SparseFineTuner(model, density=0.25, frozen_depth=0.5, learning_rate=1e-2, **options)
    tuner.select(batches)
    optimizer = make_optimizer(model, learning_rate=1e-2, weight_decay=0.0)
    for number in range(steps):
        optimizer.zero_grad()
        tuner.loss(batches[number % len(batches)]).backward()
        optimizer.step()
    return tuner, optimizer


def _batches(make_samples):
    return [collate(make_samples(3, prefix=f"{seed}/", seed=seed), pad_id=0) for seed in range(3)]


@pytest.fixture
def batches(make_samples):
    return _batches(make_samples)


@pytest.fixture(params=["llama", "gpt2"])
def make_wide_model(request):
    """Makes a model whose sides are multiples of the side of a block; GPT-2's weights are stored as (in, out)."""

    def make_wide_model():
        torch.manual_seed(0)
        if request.param == "gpt2":
            sizes = {"n_embd": 64, "n_inner": 128, "n_layer": 2, "n_head": 2, "n_positions": 64}
            config = GPT2Config(vocab_size=NUM_TOKENS, **sizes, initializer_range=0.2, bos_token_id=0, eos_token_id=1)
            return GPT2LMHeadModel(config).eval()
        sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        return LlamaForCausalLM(LlamaConfig(vocab_size=NUM_TOKENS, **sizes, initializer_range=0.2)).eval()

    return make_wide_model


def _supports(tuner):
    return {name: layer.support for name, layer in sparse_layers(tuner.model).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_refresh_finds_the_dense_squared_gradients_and_seeds_the_new_entries_with_their_gradients(
    make_wide_model, batches, kind
):
    tuner, optimizer = _stepped(make_wide_model(), batches, support=kind, selector="random")
    name, layer = next(iter(sparse_layers(tuner.model).items()))
    weight, support = layer.linear.weight, layer.support
    gradients = _dense_gradients(tuner, name, batches)
    scores = support.layout.unit_scores(sum(gradient.square() for gradient in gradients))
    old_ids = support.ids.long().clone()
    waiting = support.values.grad.clone()

    found = refresh(tuner, optimizer, batches, **ALWAYS, minimum_age=0)

    best = scores.topk(len(old_ids)).values.sum()
    assert found.retention[name] == pytest.approx(float(scores[old_ids].sum() / best), rel=1e-4)
    is_new = ~torch.isin(support.ids, old_ids)
    assert found.exchanged[name] == int(is_new.sum()) > 0
    assert scores[support.ids.long()].sum() > scores[old_ids].sum()
    assert torch.equal(support.values.grad, waiting)
    assert not weight.requires_grad
    assert isinstance(tuner.model.get_submodule(name), SparseLinear)
    # up to the scale of the run, the first moment is the mean gradient (of the model after the exchange)
    gradients = _dense_gradients(tuner, name, batches)
    by_unit = support.layout.by_unit
    mean = by_unit(support.layout.gather(sum(gradients) / 3, support.ids))[is_new]
    first = by_unit(optimizer.state[support.values]["exp_avg"])[is_new]
    torch.testing.assert_close(first / first.norm(), mean / mean.norm(), rtol=1e-3, atol=1e-5)


def _dense_gradients(tuner, name, batches):
    layer = tuner.model.get_submodule(name)
    parent, child = tuner.model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
    setattr(parent, child, layer.linear)
    layer.linear.weight.requires_grad_(True)
    gradients = [torch.autograd.grad(tuner.loss(batch), layer.linear.weight)[0] for batch in batches]
    layer.linear.weight.requires_grad_(False)
    setattr(parent, child, layer)
    return gradients


@pytest.mark.parametrize("kind", KINDS)
def test_the_arithmetic_of_a_refresh_is_less_than_that_of_two_full_steps(make_wide_model, batches, kind, count_flops):
    full = make_wide_model()
    with count_flops() as full_step:
        supervised_loss(full, batches[0]).backward()
    model = make_wide_model()
    tuner = SparseFineTuner(model, support=kind, density=0.05, frozen_depth=0.0, selector="random")
    tuner.select([])
    optimizer = make_optimizer(model, learning_rate=1e-2, weight_decay=0.0)
    tuner.loss(batches[0]).backward()
    optimizer.step()
    with count_flops() as counted:
        found = refresh(tuner, optimizer, batches[:1], **ALWAYS, minimum_age=0)
    assert next(iter(sparse_layers(model))) in found.exchanged  # gradients flow all the way down
    assert 0 < counted.count < 2 * full_step.count


def test_supports_that_still_capture_enough_stay_as_they_are(tiny_model, batches):
    tuner, optimizer = _stepped(tiny_model, batches)
    before = {name: (s.ids.clone(), s.values.detach().clone()) for name, s in _supports(tuner).items()}
    found = refresh(tuner, optimizer, batches, below=0.01, fraction=0.5, margin=1.0, minimum_age=0)
    assert not found.exchanged
    assert all(0.01 < share <= 1 for share in found.retention.values())
    for name, support in _supports(tuner).items():
        assert torch.equal(support.ids, before[name][0])
        assert torch.equal(support.values, before[name][1])


def test_the_kept_outputs_of_frozen_layers_stay_valid_across_refreshes(make_model, batches):
    tuner, optimizer = _stepped(make_model("llama"), batches)
    refresh(tuner, optimizer, batches, **ALWAYS, minimum_age=0)
    plain, _ = _stepped(make_model("llama"), batches, steps=0, cache_prefix=False)
    file = StateFile(None, limit_bytes=0)
    kept, fresh = tuner._loss._cache, PrefixCache(plain.model, first_layer=2, limit_bytes=10**9, file=file)
    for batch in batches:
        fresh.fill(batch)
    assert kept._kept.keys() == fresh._kept.keys()
    assert all(torch.equal(rest, fresh._kept[sample][1]) for sample, (_, rest) in kept._kept.items())


# --- in a trainer ---------------------------------------------------------------------------------


class _Record(L.Callback):
    """Keeps the ids of one support and the batches, step by step."""

    def __init__(self):
        self.ids, self.samples = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        layer = next(iter(sparse_layers(pl_module.model).values()))
        self.ids.append(layer.support.ids.tolist())
        self.samples.append(batch["ids"])


def _fit(model, samples, tmp_path, *callbacks, loader=None, **options):
    tuner = SparseFineTuner(model, density=0.25, selector="random", learning_rate=1e-2)
    if loader is not None:
        tuner.select([])
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        default_root_dir=tmp_path,
        callbacks=list(callbacks),
        **{"max_epochs": 2, **options},
    )
    data = {"datamodule": SampleDataModule(samples, batch_size=4, pad_id=0)}
    trainer.fit(tuner, **({"train_dataloaders": loader} if loader is not None else data))
    return trainer


def _changes(ids):
    return [step for step, (before, after) in enumerate(pairwise(ids), start=2) if before != after]


def test_a_trainer_refreshes_at_its_steps_but_not_where_too_few_remain_and_keeps_its_order(
    make_model, make_samples, tmp_path
):
    record, plain = _Record(), _Record()
    callback = RefreshCallback(every_steps=4, minimum_age_steps=0, **ALWAYS)
    trainer = _fit(make_model("llama"), make_samples(24), tmp_path, callback, record, max_steps=11)
    assert _changes(record.ids) == [4]  # 8 + 4 is past the end
    assert 0 < float(trainer.callback_metrics["gradient_retention"]) < 1
    _fit(make_model("llama"), make_samples(24), tmp_path, plain, max_steps=11)
    assert record.samples == plain.samples
    assert _changes(plain.ids) == []


def test_several_batches_to_a_step_count_as_one_step(make_model, make_samples, tmp_path):
    record = _Record()
    callback = RefreshCallback(every_steps=2, minimum_age_steps=0, **ALWAYS)
    _fit(make_model("llama"), make_samples(32), tmp_path, callback, record, accumulate_grad_batches=2)
    assert _changes(record.ids) == [4, 8, 12]


def test_no_refresh_happens_while_all_units_are_young(make_model, make_samples, tmp_path):
    record = _Record()
    callback = RefreshCallback(every_steps=2, minimum_age_steps=5, **ALWAYS)
    trainer = _fit(make_model("llama"), make_samples(24), tmp_path, callback, record, max_steps=8)
    assert _changes(record.ids) == [6]
    assert "gradient_retention" in trainer.callback_metrics


def test_a_loader_whose_batches_cannot_be_had_again_is_refused(tiny_model, make_samples, tmp_path):
    loader = DataLoader(make_samples(8), batch_size=4, collate_fn=lambda samples: collate(samples, pad_id=0))
    with pytest.raises(UsageError, match="needs a BatchLoader to measure by, got DataLoader; fit with a SampleData"):
        _fit(tiny_model, make_samples(8), tmp_path, RefreshCallback(every_steps=1), loader=loader)


def test_another_module_is_refused(tmp_path):
    class Other(L.LightningModule):
        pass

    with pytest.raises(UsageError, match="is for a SparseFineTuner, got Other"):
        RefreshCallback(every_steps=1).on_train_start(L.Trainer(logger=False, accelerator="cpu"), Other())


def test_a_model_that_diverged_says_so(tiny_model, make_samples, tmp_path):
    class Diverge(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            next(iter(sparse_layers(pl_module.model).values())).linear.weight.fill_(float("nan"))

    callback = RefreshCallback(every_steps=2, minimum_age_steps=0)
    message = r"training diverged before the refresh at step 2 .*lower training.learning_rate from 0.01"
    with pytest.raises(SparsegateError, match=message):
        _fit(tiny_model, make_samples(24), tmp_path, Diverge(), callback)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_steps": 0}, "every_steps must be at least 1, got 0; leave the callback out"),
        ({"every_steps": 5, "below": 1.5}, r"below must be in \(0, 1\], got 1.5"),
        ({"every_steps": 5, "margin": 0.5}, r"margin must be in \[1, 1e\+06\], got 0.5"),
        ({"every_steps": 5, "fraction": float("nan")}, r"fraction must be in \(0, 1\], got nan"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        RefreshCallback(**arguments)


def test_a_run_never_refreshes_unless_asked():
    assert TrainingConfig().refresh.every_steps == 0


def test_batches_of_the_first_pass_come_in_a_circle_and_leave_the_place_in_the_order(make_samples):
    loader = BatchLoader(make_samples(20), batch_size=4, pad_id=0, seed=0)
    iterator = iter(loader)
    seen = [next(iterator)["ids"] for _ in range(3)]
    state = loader.state_dict()
    assert [batch["ids"] for batch in loader.some_of_first_pass(2, start=2)] == [seen[2], seen[0]]
    assert [batch["ids"] for batch in loader.some_of_first_pass(9, start=4)] == [seen[1], seen[2], seen[0]]
    assert loader.state_dict() == state


# --- several processes ----------------------------------------------------------------------------


_PROCESS = """
import sys, conftest, test_training_refresh as test
batches = test._batches(conftest.build_samples)
test.refresh_as(1, *sys.argv[1:], conftest.build_model(), batches)
"""


def refresh_as(rank, port, folder, model, batches):
    """Refresh as one of two processes, by a batch of its own, and write what came out."""
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2, timeout=timedelta(minutes=2))
    try:
        tuner, optimizer = _stepped(model, batches[:1], selector="random")
        found = refresh(tuner, optimizer, [batches[1 + rank]], **ALWAYS, minimum_age=0)
    finally:
        dist.destroy_process_group()
    supports = {name: (s.ids, s.values.detach()) for name, s in _supports(tuner).items()}
    moments = {name: optimizer.state[s.values]["exp_avg"] for name, s in _supports(tuner).items()}
    torch.save({"retention": found.retention, "supports": supports, "moments": moments}, Path(folder, f"{rank}.pt"))


def test_processes_that_see_different_batches_choose_what_one_process_chooses_by_all_of_them(
    make_model, batches, tmp_path
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    other = subprocess.Popen([sys.executable, "-c", _PROCESS, port, str(tmp_path)], env=environment)
    try:
        refresh_as(0, port, tmp_path, make_model("llama"), batches)
        assert other.wait(timeout=60) == 0
    finally:
        other.kill()
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    tuner, optimizer = _stepped(make_model("llama"), batches[:1], selector="random")
    alone = refresh(tuner, optimizer, batches[1:3], **ALWAYS, minimum_age=0)
    assert alone.exchanged
    for name, support in _supports(tuner).items():
        for rank in (first, second):
            ids, values = rank["supports"][name]
            assert torch.equal(ids, support.ids)
            torch.testing.assert_close(values, support.values.detach())
            torch.testing.assert_close(rank["moments"][name], optimizer.state[support.values]["exp_avg"])
            assert rank["retention"][name] == pytest.approx(alone.retention[name])
        assert torch.equal(first["supports"][name][1], second["supports"][name][1])
        assert torch.equal(first["moments"][name], second["moments"][name])
