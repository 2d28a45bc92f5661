from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from sparsegate.contracts import EncodedSample
from sparsegate.data.datamodule import IGNORED, collate
from sparsegate.errors import ModelError
from sparsegate.models.heads import split_at_head
from sparsegate.training.loss import num_supervised, supervised_loss


def _special_model(family):
    """Build a model that changes its logits after the head (gemma2, cohere), or names its parts otherwise (gpt2)."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 96,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "initializer_range": 0.3,
        "pad_token_id": 0,
    }
    if family == "gemma2":
        return Gemma2ForCausalLM(Gemma2Config(**sizes, head_dim=8, final_logit_softcapping=2.0)).eval()
    if family == "cohere":
        return CohereForCausalLM(CohereConfig(**sizes, logit_scale=0.3)).eval()
    return GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)).eval()


def _plain_loss(model, batch):
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED)


def test_the_supervised_loss_equals_the_loss_of_all_logits(any_model, make_samples):
    batch = collate(make_samples(7), pad_id=0)
    torch.testing.assert_close(supervised_loss(any_model, batch), _plain_loss(any_model, batch))


@pytest.mark.parametrize("max_logit_rows", [1, 4, 1000])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "gemma2", "cohere", "gpt2"])
def test_loss_and_gradients_are_exact_whatever_number_of_logits_is_held_at_once(
    make_model, make_samples, family, max_logit_rows
):
    model = make_model(family) if family in {"llama", "qwen2", "gemma"} else _special_model(family)
    model = model.double()
    batch = collate(make_samples(7), pad_id=0)
    weights = list(model.parameters())
    plain = _plain_loss(model, batch)
    expected = torch.autograd.grad(plain, weights)
    loss = supervised_loss(model, batch, max_logit_rows=max_logit_rows)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, plain, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(loss, weights), expected, rtol=1e-9, atol=1e-14)


def test_no_more_rows_of_logits_than_allowed_exist_in_forward_and_backward(tiny_model, make_samples):
    batch = collate(make_samples(9), pad_id=0)
    rows, kept = [], []
    weights = {weight.untyped_storage().data_ptr() for weight in tiny_model.parameters()}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept.append(tensor.shape)
        return tensor

    tiny_model.lm_head.register_forward_hook(lambda _, __, output: rows.append(output.shape[1]))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = supervised_loss(tiny_model, batch, max_logit_rows=5)
    num_forward = len(rows)
    loss.backward()
    assert not any(96 in shape for shape in kept)  # logits are not kept from forward to backward
    assert max(rows) == 5 < num_supervised(batch)
    assert sum(rows[:num_forward]) == sum(rows[num_forward:]) == num_supervised(batch)


def test_a_short_response_takes_one_pass_through_the_head(tiny_model, make_samples):
    passes = []
    tiny_model.lm_head.register_forward_hook(lambda *_: passes.append(1))
    supervised_loss(tiny_model, collate(make_samples(7), pad_id=0)).backward()
    assert len(passes) == 1


def test_chunks_leave_the_model_as_it_was(tiny_model, make_samples):
    batch = collate(make_samples(7), pad_id=0)
    before = _plain_loss(tiny_model, batch)
    supervised_loss(tiny_model, batch, max_logit_rows=3).backward()
    assert "forward" not in vars(tiny_model.model)
    assert not tiny_model.lm_head._forward_pre_hooks
    assert not tiny_model.model._forward_hooks
    assert torch.equal(_plain_loss(tiny_model, batch), before)


def test_a_model_without_a_body_of_its_own_is_refused(tiny_model, make_samples):
    batch = collate(make_samples(2), pad_id=0)
    model = deepcopy(tiny_model)
    model.base_model_prefix = "none"
    with pytest.raises(ModelError, match="does not hold its layers apart from its head"):
        split_at_head(model, batch["input_ids"], batch["attention_mask"], batch["attention_mask"].bool())


def test_a_batch_without_supervised_tokens_has_no_loss_and_no_gradient(tiny_model):
    batch = collate([EncodedSample("a", (5, 6, 7), (8,))], pad_id=0)
    batch["labels"].fill_(IGNORED)
    loss = supervised_loss(tiny_model, batch)
    loss.backward()
    assert num_supervised(batch) == 0
    assert loss == 0
    assert all(weight.grad is None or not weight.grad.any() for weight in tiny_model.parameters())


def test_padding_does_not_change_the_loss(tiny_model, make_samples):
    samples = make_samples(5)
    alone = [supervised_loss(tiny_model, collate([sample], pad_id=0)) for sample in samples]
    weights = torch.tensor([float(len(sample.response_ids)) for sample in samples])
    expected = (torch.stack(alone) * weights).sum() / weights.sum()
    torch.testing.assert_close(supervised_loss(tiny_model, collate(samples, pad_id=9)), expected)
