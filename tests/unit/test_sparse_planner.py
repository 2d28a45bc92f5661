import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsegate.errors import UsageError
from sparsegate.sparse.budget import Budget
from sparsegate.sparse.cost_model import BatchShape, CostModel
from sparsegate.sparse.planner import Plan, Saliency, make_plan


@pytest.fixture(scope="module")
def costs(make_model):
    return {
        kind: CostModel(make_model("llama"), kind=kind, batch=BatchShape(4, 16, 64)) for kind in ("column", "element")
    }


def saliency_of(*layers):
    """Saliency of layers with eight equal units each."""
    scores = [(index, torch.full((8,), value)) for index, value in enumerate(layers)]
    return Saliency(scores, num_layers=len(layers))


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(
    ("layers", "first_layer"),
    [
        pytest.param((0.0, 0.0, 0.0, 1.0), 3, id="all on top"),
        pytest.param((1.0, 0.0, 0.0, 0.0), 0, id="all at the bottom"),
        pytest.param((1.0, 1.0, 1.0, 1.0), 0, id="equal everywhere"),
        pytest.param((0.1, 0.1, 1.0, 1.0), 2, id="most in the upper half"),
        pytest.param((1.0, 1.0, 0.1, 0.1), 0, id="most in the lower half"),
    ],
)
def test_the_cut_follows_the_saliency(costs, layers, first_layer, cached):
    plan = make_plan(
        costs["column"], Budget(density=0.25), first_layer=None, cached=cached, saliency=saliency_of(*layers)
    )
    assert plan == Plan(first_layer, 0.25)


@pytest.mark.parametrize("first_layer", [0, 3, None])
@given(limit=st.floats(0.02, 1.0), cached=st.booleans())
def test_a_time_limit_is_met_and_used(costs, first_layer, limit, cached):
    model, saliency = costs["column"], saliency_of(1.0, 1.0, 1.0, 1.0)
    try:
        plan = make_plan(model, Budget(time_limit=limit), first_layer=first_layer, cached=cached, saliency=saliency)
    except UsageError:
        cuts = range(4) if first_layer is None else [first_layer]
        least = [model.step_flops(first_layer=cut, density=1e-9, cached=cached) for cut in cuts]
        assert min(least) > limit * model.full_step_flops()
        return
    at = {"first_layer": plan.first_layer, "cached": cached}
    assert model.step_flops(density=plan.density, **at) <= limit * model.full_step_flops()
    if plan.density < 1:
        assert model.step_flops(density=plan.density + 1 / 16, **at) > limit * model.full_step_flops()


@pytest.mark.parametrize("kind", ["column", "element"])
def test_a_memory_limit_is_met_and_used(costs, kind):
    model = costs[kind]
    limit = (model.memory_bytes(first_layer=2, density=0.1) + model.memory_bytes(first_layer=2, density=0.5)) / 2
    plan = make_plan(model, Budget(memory_limit_gb=limit / 1e9), first_layer=2, cached=True, saliency=None)
    assert plan.first_layer == 2
    assert model.memory_bytes(first_layer=2, density=plan.density) <= limit
    assert model.memory_bytes(first_layer=2, density=plan.density + 1 / 16) > limit


def test_under_a_limit_the_cut_is_where_the_most_saliency_is_captured(costs):
    model = costs["column"]
    budget = Budget(memory_limit_gb=1.05 * model.memory_bytes(first_layer=2, density=0.5) / 1e9)
    chosen = {
        layers: make_plan(model, budget, first_layer=None, cached=True, saliency=saliency_of(*layers)).first_layer
        for layers in [(0.0, 0.0, 0.0, 1.0), (0.0, 0.0, 1.0, 1.0)]
    }
    assert chosen == {(0.0, 0.0, 0.0, 1.0): 3, (0.0, 0.0, 1.0, 1.0): 2}


@pytest.mark.parametrize("budget", [Budget(time_limit=0.001), Budget(memory_limit_gb=1e-9)])
def test_a_budget_that_can_not_be_met_names_the_smallest_that_can(costs, budget):
    name, unit = ("time_limit", None) if budget.time_limit else ("memory_limit_gb", 1e9)
    with pytest.raises(UsageError, match=rf"{name} \S+ can't be met with batches of 4 x 16 tokens") as caught:
        make_plan(costs["column"], budget, first_layer=None, cached=True, saliency=saliency_of(1.0, 1.0, 1.0, 1.0))
    least = float(str(caught.value).partition("smallest is ")[2].partition(",")[0])
    again = Budget(**{name: least})
    plan = make_plan(costs["column"], again, first_layer=3, cached=True, saliency=None)
    spent = (
        costs["column"].memory_bytes(**plan._asdict()) / unit
        if unit
        else costs["column"].step_flops(**plan._asdict(), cached=True) / costs["column"].full_step_flops()
    )
    assert spent == pytest.approx(least, rel=0.01)


def test_a_time_limit_with_element_supports_is_refused(costs):
    with pytest.raises(UsageError, match="can't choose a density of element supports"):
        make_plan(costs["element"], Budget(time_limit=0.5), first_layer=2, cached=True, saliency=None)


@pytest.mark.parametrize("value", [-1.0, 0.0, float("nan")])
def test_scores_that_can_not_be_summed_over_layers_are_refused(value):
    with pytest.raises(UsageError, match="frozen_depth 'auto' sums scores over layers"):
        saliency_of(value, value)


def test_captured_saliency_grows_with_density_and_depth_up_to_all_of_it():
    saliency = Saliency([(0, torch.tensor([4.0, 0.0])), (1, torch.tensor([3.0, 1.0]))], num_layers=2)
    assert saliency.captured(Plan(0, 1.0)) == 1.0
    assert saliency.captured(Plan(1, 1.0)) == 0.5
    assert saliency.captured(Plan(1, 0.5)) == 0.375
    assert saliency.captured(Plan(0, 0.5)) == 0.875
