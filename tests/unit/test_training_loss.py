import torch
import torch.nn.functional as F

from sparsegate.data.datamodule import IGNORED, collate
from sparsegate.training.loss import supervised_loss


def test_the_supervised_loss_equals_the_loss_of_all_logits(any_model, make_samples):
    batch = collate(make_samples(7), pad_id=0)
    logits = any_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED)
    torch.testing.assert_close(supervised_loss(any_model, batch), expected)


def test_the_supervised_loss_has_the_gradients_of_the_loss_of_all_logits(tiny_model, make_samples):
    batch = collate(make_samples(7), pad_id=0)
    loss = tiny_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    weights = list(tiny_model.parameters())
    expected = torch.autograd.grad(loss, weights)
    actual = torch.autograd.grad(supervised_loss(tiny_model, batch), weights)
    torch.testing.assert_close(actual, expected)


def test_padding_does_not_change_the_loss(tiny_model, make_samples):
    samples = make_samples(5)
    alone = [supervised_loss(tiny_model, collate([sample], pad_id=0)) for sample in samples]
    weights = torch.tensor([float(len(sample.response_ids)) for sample in samples])
    expected = (torch.stack(alone) * weights).sum() / weights.sum()
    torch.testing.assert_close(supervised_loss(tiny_model, collate(samples, pad_id=9)), expected)
