import pytest
import torch

from sparsegate.data.datamodule import collate
from sparsegate.sparse.targets import decoder_layers
from sparsegate.training.last_layer import last_layer_at
from sparsegate.training.loss import supervised_loss


@pytest.fixture
def batch(make_samples):
    return collate(make_samples(6, longest=40), pad_id=0)


def test_the_mlp_of_the_last_layer_sees_supervised_positions_only(tiny_model, batch, monkeypatch):
    seen = []
    for layer in decoder_layers(tiny_model)[1]:
        act = layer.mlp.act_fn.forward
        monkeypatch.setattr(
            layer.mlp.act_fn, "forward", lambda x, act=act: [seen.append(x.shape[:-1].numel()), act(x)][1]
        )
    supervised_loss(tiny_model, batch)
    *others, last = seen
    assert last == int((batch["labels"][:, 1:] != -100).sum())
    assert set(others) == {batch["input_ids"].numel()}


def test_hooks_see_all_tokens(tiny_model, batch):
    seen = []
    gate = decoder_layers(tiny_model)[1][-1].mlp.gate_proj
    gate.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[:-1]))
    supervised_loss(tiny_model, batch)
    assert seen == [batch["input_ids"].shape]


@pytest.mark.parametrize("patched", [False, True])
def test_the_layer_has_its_own_forward_back_afterwards(tiny_model, batch, patched):
    mlp = decoder_layers(tiny_model)[1][-1].mlp
    if patched:
        mlp.forward = mlp.forward
    before = vars(mlp).get("forward")
    limited = last_layer_at(tiny_model, batch["labels"] != -100)
    limited.__enter__()
    assert vars(mlp)["forward"] is not before
    limited.__exit__(None, None, None)
    assert vars(mlp).get("forward") is before


def test_a_layer_that_is_run_again_for_the_backward_pass_runs_in_full(tiny_model, batch):
    tiny_model.requires_grad_(True)
    expected = torch.autograd.grad(supervised_loss(tiny_model, batch), tiny_model.parameters())
    tiny_model.activation_checkpointing_enable({"use_reentrant": False})
    found = torch.autograd.grad(supervised_loss(tiny_model.train(), batch), tiny_model.parameters())
    torch.testing.assert_close(found, expected)
