"""What every selector in the table must keep to; a new one is tested by standing there."""

import importlib.metadata

import pytest
import torch

from sparsegate.contracts import CalibrationStats, MaskSelector
from sparsegate.data.datamodule import collate
from sparsegate.errors import UsageError
from sparsegate.sparse import selectors
from sparsegate.sparse.selection import calibrate
from sparsegate.sparse.selectors import SELECTORS, make_selector, selector_table
from sparsegate.sparse.targets import find_targets
from sparsegate.training.loss import supervised_loss


@pytest.fixture
def scored(tiny_model, make_samples):
    """Two weights, wide and tall, and a function that scores them anew with a selector."""
    targets = [target for target in find_targets(tiny_model, first_layer=3) if "mlp" in target.name]

    def score(name, seed=0):
        selector = make_selector(name)
        statistics = {}
        if selector.needs:
            batches = [collate(make_samples(4, seed=number), pad_id=0) for number in range(2)]
            statistics = calibrate(
                targets, batches, lambda batch: supervised_loss(tiny_model, batch), needs=selector.needs
            )
        generator = torch.Generator().manual_seed(seed)
        weights = [target.linear.weight for target in targets]
        parts = [CalibrationStats(**statistics.get(target.name, {}), generator=generator) for target in targets]
        return weights, [selector.score(weight, part) for weight, part in zip(weights, parts, strict=True)]

    tiny_model.requires_grad_(False)
    return score


@pytest.mark.parametrize("name", SELECTORS)
def test_a_selector_keeps_the_protocol_and_its_name_in_the_table(name):
    selector = make_selector(name)
    assert isinstance(selector, MaskSelector)
    assert selector.name == name


@pytest.mark.parametrize("name", SELECTORS)
def test_scores_are_finite_of_the_weights_shape_and_leave_it_alone(scored, tiny_model, weights_of, name):
    before = weights_of(tiny_model)
    weights, scores = scored(name)
    for weight, score in zip(weights, scores, strict=True):
        assert score.shape == weight.shape
        assert score.device == weight.device
        assert not score.requires_grad
        assert bool(torch.isfinite(score).all())
        assert len(score.unique()) > 1
    assert all(torch.equal(weight, before[part]) for part, weight in weights_of(tiny_model).items())


@pytest.mark.parametrize("name", SELECTORS)
def test_scores_are_the_same_for_the_same_seed(scored, name):
    (_, first), (_, second) = scored(name, seed=7), scored(name, seed=7)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_random_scores_differ_for_another_seed(scored):
    (_, first), (_, second) = scored("random", seed=1), scored("random", seed=2)
    assert not torch.equal(first[0], second[0])


def test_an_unknown_selector_is_refused_with_a_suggestion():
    with pytest.raises(UsageError, match="unknown selector 'fischer'; did you mean 'fisher'"):
        make_selector("fischer")


def _install(monkeypatch, name):
    entry = importlib.metadata.EntryPoint(
        name, "sparsegate.sparse.selectors.random:RandomSelector", "sparsegate.selectors"
    )
    monkeypatch.setattr(selectors, "entry_points", lambda group: [entry])


def test_a_selector_of_an_installed_package_joins_the_table(monkeypatch):
    _install(monkeypatch, "theirs")
    assert selector_table()["theirs"] is SELECTORS["random"]


def test_an_installed_selector_must_not_take_a_name_in_use(monkeypatch):
    _install(monkeypatch, "fisher")
    with pytest.raises(UsageError, match=r"selector 'fisher' of .* is already defined; rename the entry point"):
        selector_table()
