import pytest
import torch

from sparsegate.config import TrainingConfig
from sparsegate.errors import SparsegateError
from sparsegate.sparse.layers import sparse_layers
from sparsegate.sparse.optimizer import default_learning_rate
from sparsegate.training.learning_rate import find_learning_rate, steepest


@pytest.mark.parametrize("options", [{"frozen_depth": 0.5}, {"frozen_depth": "auto", "cache_prefix": False}])
def test_a_range_test_suggests_a_rate_and_leaves_the_model_as_it_was(
    make_model, make_samples, weights_of, tmp_path, monkeypatch, options
):
    monkeypatch.chdir(tmp_path)
    model = make_model("llama")
    before = weights_of(model)
    config = TrainingConfig(
        selector="fisher", batch_size=4, density=0.25, accelerator="cpu", learning_rate=0.5, **options
    )
    found = find_learning_rate(model, make_samples(24), config=config, pad_id=0, steps=40)
    assert 1e-6 < found.suggested < 0.1
    assert found.suggested in found.rates
    frozen = 0.5 if options["frozen_depth"] == 0.5 else found.first_layer / 4
    assert found.default == default_learning_rate(density=0.25, frozen_depth=frozen)
    assert list(found.rates) == sorted(found.rates)
    assert 12 < len(found.rates) == len(found.losses_nats) <= 40
    assert min(found.losses_nats[10:]) < 0.98 * found.losses_nats[10]  # it did train

    after = weights_of(model)
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    assert not sparse_layers(model)
    assert not model.training
    assert list(tmp_path.iterdir()) == []


def test_the_same_seed_finds_the_same_rate(make_model, make_samples):
    config = TrainingConfig(batch_size=4, accelerator="cpu")
    found = [
        find_learning_rate(make_model("llama"), make_samples(24), config=config, pad_id=0, steps=20) for _ in range(2)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("losses", [[], [1.0] * 12, [*[1.0] * 20, float("nan"), 1.0]])
def test_too_few_finite_losses_suggest_nothing(losses):
    with pytest.raises(SparsegateError, match="before there was a learning rate to suggest"):
        steepest(losses)
