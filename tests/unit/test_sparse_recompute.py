import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from sparsegate.data.datamodule import collate
from sparsegate.sparse.layers import install
from sparsegate.sparse.recompute import checkpointed, keep_all, keep_less
from sparsegate.sparse.selection import calibrate
from sparsegate.sparse.support import SparseSupport
from sparsegate.sparse.targets import decoder_layers, find_targets
from sparsegate.training.loss import supervised_loss
from sparsegate.training.module import SparseFineTuner

FAMILIES = ("llama", "qwen2", "gemma", "gpt2")


@pytest.fixture
def batch(make_samples):
    return collate(make_samples(6), pad_id=0)


def _build(family, make_model, dtype=torch.float64):
    """Return a model with frozen norms: sparse layers, or for GPT-2 trained weights of its own kind of linear map."""
    if family == "gpt2":
        torch.manual_seed(0)
        sizes = {"vocab_size": 96, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
        model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=1)).eval()
        model = model.to(dtype).requires_grad_(False)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".c_" in name)
        return model
    model = make_model(family).to(dtype).requires_grad_(False)
    for target in find_targets(model):
        ids = torch.arange(0, target.linear.in_features, 5, dtype=torch.int32)
        install(model, target, SparseSupport("column", ids, target.linear.weight))
    return model


def _layers(model):
    return list(decoder_layers(model)[1])


def _step(model, batch):
    """Return the loss, the gradients, and the bytes kept between the passes."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        loss = supervised_loss(model, batch)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    return loss, gradients, sum(size for at, size in storages.items() if at not in own)


def _assert_same_step_from_less(model, batch, *, at_most):
    loss, gradients, before = _step(model, batch)
    keep_less(_layers(model))
    again, gradients_again, after = _step(model, batch)
    assert torch.equal(again, loss)
    assert len(gradients) > 0
    assert all(torch.equal(one, other) for one, other in zip(gradients_again, gradients, strict=True))
    assert after <= at_most * before


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_gradients_are_bit_identical_and_less_is_kept(family, make_model, batch):
    _assert_same_step_from_less(_build(family, make_model), batch, at_most=0.9)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_holds_in_bf16_where_norms_would_keep_fp32(family, make_model, batch):
    _assert_same_step_from_less(_build(family, make_model, torch.bfloat16), batch, at_most=0.8)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_holds_under_autocast(family, make_model, batch):
    with torch.autocast("cpu", torch.bfloat16):
        _assert_same_step_from_less(_build(family, make_model, torch.float32), batch, at_most=0.95)


@pytest.mark.parametrize("family", FAMILIES)
def test_undone_nothing_is_left_on_the_modules(family, make_model):
    model = _build(family, make_model, torch.bfloat16)
    keep_less(_layers(model))
    keep_less(_layers(model))  # twice is once
    assert any("forward" in vars(module) for module in model.modules())
    keep_all(_layers(model))
    assert not any("forward" in vars(module) for module in model.modules())


class _PairMLP(nn.Module):
    """Has the parts of a gated MLP, and takes another tensor too."""

    def __init__(self, mlp):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj, self.act_fn = (
            mlp.gate_proj,
            mlp.up_proj,
            mlp.down_proj,
            mlp.act_fn,
        )

    def forward(self, x, scale):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)) * scale


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.mlp.register_forward_hook(lambda _, inputs, output: 2 * output),
        lambda layer: setattr(layer.mlp, "act_fn", nn.Sequential(nn.SiLU(), nn.Dropout(0.5)).train()),
        lambda layer: setattr(layer.mlp, "act_fn", nn.PReLU(dtype=torch.float64)),
        lambda layer: setattr(layer, "mlp", _PairMLP(layer.mlp)),
    ],
    ids=["computes something else", "drops out", "trains its activation", "takes two tensors"],
)
def test_an_mlp_of_unknown_structure_is_left_alone(make_model, change):
    model = _build("llama", make_model)
    for layer in _layers(model):
        change(layer)
    keep_less(_layers(model))
    assert not any("forward" in vars(layer.mlp) for layer in _layers(model))


def test_a_norm_that_is_trained_itself_gets_its_gradient(make_model, batch):
    model = _build("llama", make_model, torch.bfloat16)
    _layers(model)[1].input_layernorm.weight.requires_grad_(True)
    _assert_same_step_from_less(model, batch, at_most=0.9)


def test_calibration_of_checkpointed_layers_gives_the_same_statistics(any_model, batch):
    any_model.requires_grad_(False)
    targets = find_targets(any_model, first_layer=1)
    needs = frozenset({"grad_sum", "grad_sq_columns"})

    def run():
        return calibrate(targets, [batch], lambda part: supervised_loss(any_model, part), needs=needs)

    plain = run()
    with checkpointed(_layers(any_model)[1:]):
        again = run()
    for name, statistics in plain.items():
        for need, values in statistics.items():
            assert values.abs().sum() > 0
            assert torch.equal(again[name][need], values)


def test_checkpointing_ends_with_an_error_too(any_model):
    with pytest.raises(RuntimeError, match="out of memory"), checkpointed(_layers(any_model)):
        raise RuntimeError("out of memory")
    assert not any("forward" in vars(layer) for layer in _layers(any_model))


def test_a_tuner_keeps_less_in_the_trained_layers_and_undoes_it_at_the_end(tiny_model, batch):
    tuner = SparseFineTuner(tiny_model, frozen_depth=0.5)
    tuner.select([batch])
    assert ["forward" in vars(layer.mlp) for layer in _layers(tiny_model)] == [False, False, True, True]
    tuner.finish()
    assert not any("forward" in vars(module) for module in tiny_model.modules())
