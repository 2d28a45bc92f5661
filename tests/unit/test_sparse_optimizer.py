import math

import pytest
import torch
from torch import nn

from sparsegate.sparse.layers import SparseLinear
from sparsegate.sparse.optimizer import default_learning_rate, make_optimizer, make_schedule
from sparsegate.sparse.support import SparseSupport


@pytest.fixture
def model():
    linear = nn.Linear(3, 2, bias=False).requires_grad_(False)
    return nn.Sequential(SparseLinear(linear, SparseSupport("column", torch.tensor([1]), linear.weight)))


def test_a_step_moves_the_values_and_writes_them_into_the_weight(model):
    optimizer = make_optimizer(model, learning_rate=0.5, weight_decay=0.0)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    support = model[0].support
    torch.testing.assert_close(support.values.detach(), support.originals - 0.5)
    assert torch.equal(model[0].linear.weight[:, 1:2], support.values)


def test_the_schedule_rises_over_the_warm_up_and_falls_to_zero_by_a_cosine(model):
    optimizer = make_optimizer(model, learning_rate=2.0, weight_decay=0.0)
    schedule = make_schedule(optimizer, total_steps=12, warmup_fraction=1 / 6)
    rates = []
    for _ in range(12):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    expected = [1.0, 2.0] + [1 + math.cos(math.pi * step / 10) for step in range(10)]
    assert rates == pytest.approx(expected)
    assert schedule.get_last_lr()[0] == pytest.approx(0.0)


@pytest.mark.parametrize("total_steps", [1, 2])
@pytest.mark.parametrize("warmup_fraction", [0.0, 0.1, 1.0])
def test_the_shortest_runs_train_at_a_rate_above_zero(model, total_steps, warmup_fraction):
    optimizer = make_optimizer(model, learning_rate=1.0, weight_decay=0.0)
    schedule = make_schedule(optimizer, total_steps=total_steps, warmup_fraction=warmup_fraction)
    assert 0 < schedule.get_last_lr()[0] <= 1


def test_the_default_rate_rises_as_density_or_trained_depth_fall_and_is_bounded():
    rates = [default_learning_rate(density=density, frozen_depth=0.5) for density in (1.0, 0.1, 0.01)]
    assert rates == sorted(rates)
    assert rates[0] < rates[-1]
    assert default_learning_rate(density=0.1, frozen_depth=0.0) < default_learning_rate(density=0.1, frozen_depth=0.5)
    assert default_learning_rate(density=1e-6, frozen_depth=0.99) == 3e-3
    assert default_learning_rate(density=0.1, frozen_depth=0.5, by_gradient=False) > rates[1]
