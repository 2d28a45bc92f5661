"""Rows of the token embedding and of the output head, tied or not."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sparsegate.config import TrainingConfig
from sparsegate.data.datamodule import SampleDataModule, collate
from sparsegate.errors import ModelError
from sparsegate.sparse.delta import apply_delta, revert_delta
from sparsegate.sparse.layers import _SparseEmbedding, install, sparse_layers, uninstall
from sparsegate.sparse.selection import FLOW, calibrate, make_support, select
from sparsegate.sparse.selectors import SELECTORS, make_selector
from sparsegate.sparse.selectors.units import statistics_needed
from sparsegate.sparse.targets import Target, find_targets
from sparsegate.training.loss import supervised_loss
from sparsegate.training.module import SparseFineTuner

VOCABULARY_SHAPE = (96, 32)


def vocabulary(model):
    """Return the targets outside of the decoder layers."""
    return [target for target in find_targets(model, embeddings=True) if target.units]


@pytest.fixture
def batch(make_samples):
    return collate(make_samples(6), pad_id=0)


def installed(model, ids):
    for target in vocabulary(model):
        install(model, target, make_support(target, "column", torch.tensor(ids, dtype=torch.int32)))
    return model


def test_the_embedding_comes_first_and_a_head_of_its_own_last(any_model):
    names = [target.name for target in find_targets(any_model, embeddings=True)]
    in_layers = [target.name for target in find_targets(any_model)]
    family = any_model.config.model_type
    embedding = "transformer.wte" if family == "gpt2" else "model.embed_tokens"
    head = ["lm_head"] if family == "llama" else []
    assert names == [embedding, *in_layers, *head]
    assert find_targets(any_model, embeddings=True)[0].tied_head == (None if family == "llama" else "lm_head")


# --- gradients ----------------------------------------------------------------------------------


def test_the_gradient_of_chosen_tokens_equals_finite_differences():
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 3, generator=draw, dtype=torch.float64)
    tokens = torch.tensor([[5, 1, 5], [0, 6, 2]])
    ids = torch.tensor([1, 2, 5], dtype=torch.int32)

    def forward(values):
        committed = weight.index_copy(0, ids.long(), values.detach())
        return _SparseEmbedding.apply(tokens, committed, values, ids, None)

    assert torch.autograd.gradcheck(forward, weight[ids.long()].clone().requires_grad_(True))


def test_gradients_equal_the_dense_ones_summed_over_embedding_and_tied_head(any_model, batch):
    model = any_model.double()
    loss = supervised_loss(model, batch)
    loss.backward()
    dense = {target.name: target.linear.weight.grad for target in vocabulary(model)}
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)

    seen = batch["input_ids"].unique().tolist()
    unseen = [token for token in range(96) if token not in seen]
    installed(model, sorted([*seen[::2], *unseen[::9]]))
    sparse_loss = supervised_loss(model, batch)
    sparse_loss.backward()

    assert torch.equal(sparse_loss, loss)
    layers = sparse_layers(model)
    assert layers.keys() == dense.keys()
    for name, layer in layers.items():
        expected = layer.support.gather(dense[name]).float()
        assert bool(expected.any())
        torch.testing.assert_close(layer.support.values.grad, expected, rtol=1e-5, atol=1e-7)


def test_the_padding_token_gets_the_gradient_that_the_plain_embedding_gives_it():
    embedding = nn.Embedding(6, 2, padding_idx=3)
    model = nn.ModuleDict({"embedding": embedding})
    tokens = torch.tensor([3, 1, 3])
    embedding(tokens).square().sum().backward()
    dense = embedding.weight.grad
    embedding.requires_grad_(False)
    target = Target("embedding", -1, embedding, "embedding", "column")
    layer = install(model, target, make_support(target, "column", torch.tensor([1, 3])))
    layer(tokens).square().sum().backward()
    assert torch.equal(layer.support.values.grad, dense[[1, 3]])


class _Shapes(TorchDispatchMode):
    """Records the shapes of all new tensors; views of what was there are none."""

    def __init__(self):
        super().__init__()
        self.new = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            memory = result.untyped_storage().data_ptr()
            given = [value for value in args if isinstance(value, torch.Tensor)]
            if all(memory != value.untyped_storage().data_ptr() for value in given):
                self.new.append(tuple(result.shape))
        return result


def test_no_gradient_of_the_vocabularys_size_is_made(any_model, batch):
    loss = supervised_loss(installed(any_model.requires_grad_(False), [2, 7, 40]), batch)
    with _Shapes() as shapes:
        loss.backward()
    assert (3, 32) in shapes.new
    assert VOCABULARY_SHAPE not in shapes.new
    assert VOCABULARY_SHAPE[::-1] not in shapes.new


def test_a_model_with_sparse_vocabulary_answers_bit_for_bit_like_the_plain_one(any_model):
    tokens = torch.arange(2, 14).reshape(2, 6)
    plain = any_model.get_input_embeddings(), any_model.get_output_embeddings()
    with torch.no_grad():
        before = any_model(input_ids=tokens).logits
        installed(any_model, [2, 7])
        assert torch.equal(any_model(input_ids=tokens).logits, before)
    assert torch.equal(any_model(input_ids=tokens).logits, before)
    uninstall(any_model)
    assert (any_model.get_input_embeddings(), any_model.get_output_embeddings()) == plain


# --- selection ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SELECTORS, "fisher*magnitude", "magnitude@fisher:0.3"])
def test_every_selector_chooses_whole_tokens_at_the_density_asked(name, any_model, batch):
    any_model.requires_grad_(False)
    targets, selector = vocabulary(any_model), make_selector(name)
    needs = statistics_needed(selector, "column") | statistics_needed(selector, "row")
    statistics = {}
    if needs:
        statistics = calibrate(targets, [batch], lambda batch: supervised_loss(any_model, batch), needs=needs)
    select(any_model, targets, selector, statistics, kind="element", density=0.25, seed=0)
    for layer in sparse_layers(any_model).values():
        assert layer.support.kind == "row"
        assert layer.support.values.shape == (24, 32)


def test_fisher_chooses_the_tokens_whose_embeddings_have_the_largest_gradients(any_model, batch):
    supervised_loss(any_model, batch).backward()
    expected = {
        target.name: target.linear.weight.grad.square().sum(1).topk(5).indices.sort().values.tolist()
        for target in vocabulary(any_model)
    }
    any_model.zero_grad(set_to_none=True)
    any_model.requires_grad_(False)
    targets, fisher = vocabulary(any_model), make_selector("fisher")
    needs = frozenset({"grad_sq_columns", "grad_sq_rows"})
    statistics = calibrate(targets, [batch], lambda batch: supervised_loss(any_model, batch), needs=needs)
    select(any_model, targets, fisher, statistics, kind="column", density=5 / 96, seed=0)
    assert {name: layer.support.ids.tolist() for name, layer in sparse_layers(any_model).items()} == expected


def test_the_inputs_of_an_embedding_are_counted_tokens(tiny_model, batch):
    tiny_model.requires_grad_(False)
    (embedding, _) = vocabulary(tiny_model)
    statistics = calibrate([embedding], [batch] * 2, lambda batch: supervised_loss(tiny_model, batch), needs=FLOW)
    counts = statistics[embedding.name]["input_sq"]
    assert counts.shape == (96,)
    assert all(counts[token] == 2 * (batch["input_ids"] == token).sum() for token in range(96))


# --- training -----------------------------------------------------------------------------------


def fit(model, samples, tmp_path, *callbacks, **options):
    tuner = SparseFineTuner(model, frozen_depth=0.0, train_embeddings=True, density=0.1, learning_rate=1e-2, **options)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=6,
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(callbacks),
        default_root_dir=tmp_path,
        callbacks=list(callbacks),
    )
    trainer.fit(tuner, datamodule=SampleDataModule(samples, batch_size=4, pad_id=0))
    return tuner


@pytest.mark.parametrize("support", ["column", "element"])
def test_training_changes_the_supports_only_and_the_delta_takes_it_back_bit_for_bit(
    any_model, make_samples, weights_of, tmp_path, support
):
    before = weights_of(any_model)
    heads = any_model.get_input_embeddings(), any_model.get_output_embeddings()
    tuner = fit(any_model, make_samples(24), tmp_path, support=support)
    delta = tuner.delta(base_digest="abc")
    num_trained = tuner.num_trainable
    model = tuner.finish()
    assert (model.get_input_embeddings(), model.get_output_embeddings()) == heads
    trained = weights_of(model)
    assert {f"{target.name}.weight" for target in vocabulary(model)} <= delta.entries.keys()
    assert sum(entry.new.numel() for entry in delta.entries.values()) == num_trained
    for name, weight in before.items():
        assert (name in delta.entries) == (not torch.equal(weight, trained[name]))
    revert_delta(model, delta)  # writes the supports only
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(model).items())
    apply_delta(model, delta)
    assert all(torch.equal(weight, trained[name]) for name, weight in weights_of(model).items())


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2"])
def test_a_checkpoint_loads_into_a_fresh_base_and_gives_the_trained_weights(
    family, make_model, make_samples, weights_of, tmp_path
):
    keep = ModelCheckpoint(dirpath=tmp_path / "checkpoints", filename="last", every_n_train_steps=3)
    tuner = fit(make_model(family), make_samples(24), tmp_path, keep, support="element")
    again = SparseFineTuner(make_model(family), frozen_depth=0.0, train_embeddings=True)
    again.on_load_checkpoint(torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True))
    expected = weights_of(tuner.finish())
    found = weights_of(again.finish())
    assert found.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())


# --- refusals -----------------------------------------------------------------------------------


def test_the_configuration_asks_for_no_frozen_layers():
    assert "train_embeddings" not in TrainingConfig(train_embeddings=True, frozen_depth=0.0).problems()
    for other in ({"frozen_depth": 0.5}, {"frozen_depth": "auto"}, {"frozen_depth": 0.0, "memory_limit_gb": 1.0}):
        problems = TrainingConfig(train_embeddings=True, **other).problems()
        assert problems == {"train_embeddings": "train_embeddings needs frozen_depth 0, and no limit"}


class _Noisy(nn.Embedding):
    def forward(self, tokens):
        return super().forward(tokens) + 1.0


def test_an_embedding_that_does_more_than_look_up_and_scale_is_refused(tiny_model):
    tiny_model.model.embed_tokens = _Noisy(96, 32)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM has _Noisy and Linear; leave it off"):
        find_targets(tiny_model, embeddings=True)
    assert find_targets(tiny_model)
