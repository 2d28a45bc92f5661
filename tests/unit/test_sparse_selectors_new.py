from functools import partial
from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from sparsegate.contracts import CalibrationStats, MaskSelector, Statistic, UnitSelector
from sparsegate.errors import UsageError
from sparsegate.sparse.layers import sparse_layers
from sparsegate.sparse.selection import FLOW, calibrate, select
from sparsegate.sparse.selectors import SELECTORS, make_selector
from sparsegate.sparse.selectors.combine import ProductSelector, ranks
from sparsegate.sparse.selectors.lift import LiftSelector
from sparsegate.sparse.selectors.units import statistics_needed, unit_scores
from sparsegate.sparse.targets import find_targets

COMBINATIONS = (
    "fisher*magnitude",
    "fisher*separable*random",
    "magnitude@fisher:0.5",
    "taylor*adam@separable*magnitude:0.3",
)
EVERY_SELECTOR = (*SELECTORS, *COMBINATIONS)
BATCHES = [torch.arange(2, 14).view(2, 6), torch.arange(40, 52).view(2, 6)]


def next_token_loss(model, ids):
    return F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def measured(model, selector, kind, batches=BATCHES):
    targets = find_targets(model)
    needs = statistics_needed(selector, kind)
    return targets, calibrate(targets, batches, partial(next_token_loss, model), needs=needs) if needs else {}


def stats_of(statistics, target, seed=0):
    return CalibrationStats(**statistics.get(target.name, {}), generator=torch.Generator().manual_seed(seed))


def small_stats(rows, columns, seed=0):
    draw = torch.Generator().manual_seed(seed)
    gradients = torch.randn(5, rows, columns, generator=draw)
    return CalibrationStats(
        grad_sum=gradients.sum(0),
        grad_sq_sum=gradients.square().sum(0),
        grad_sq_columns=gradients.square().sum((0, 1)),
        grad_sq_rows=gradients.square().sum((0, 2)),
        output_grad_sq=torch.rand(rows, generator=draw),
        input_sq=torch.rand(columns, generator=draw),
        generator=draw,
    )


# --- the contract -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY_SELECTOR)
def test_every_selector_follows_the_contract(name, tiny_model):
    tiny_model.requires_grad_(False)
    selector = make_selector(name)
    assert isinstance(selector, MaskSelector)
    assert selector.name == name
    assert selector.needs <= set(get_args(Statistic))
    targets, statistics = measured(tiny_model, selector, "element")
    for target in targets:
        before = target.linear.weight.clone()
        scores = selector.score(target.linear.weight, stats_of(statistics, target))
        assert scores.shape == before.shape
        assert not scores.requires_grad
        assert bool(torch.isfinite(scores).all())
        assert torch.equal(scores, make_selector(name).score(target.linear.weight, stats_of(statistics, target)))
        assert torch.equal(target.linear.weight, before)


@pytest.mark.parametrize("kind", ["column", "row"])
@pytest.mark.parametrize("name", EVERY_SELECTOR)
def test_every_selector_scores_whole_columns_and_rows(name, kind, tiny_model):
    selector = make_selector(name)
    targets, statistics = measured(tiny_model.requires_grad_(False), selector, kind)
    for target in targets:
        scores = unit_scores(selector, target.linear.weight, stats_of(statistics, target), kind)
        assert scores.shape == (target.linear.weight.shape[1 if kind == "column" else 0],)
        assert bool(torch.isfinite(scores).all())


@pytest.mark.parametrize("kind", ["element", "column"])
@pytest.mark.parametrize("name", EVERY_SELECTOR)
def test_every_selector_gives_supports_of_the_asked_density(name, kind, tiny_model):
    selector = make_selector(name)
    targets, statistics = measured(tiny_model.requires_grad_(False), selector, kind)
    select(tiny_model, targets, selector, statistics, kind=kind, density=0.25, seed=0)
    layers = sparse_layers(tiny_model)
    assert len(layers) == len(targets)
    for layer in layers.values():
        assert layer.support.values.numel() == layer.linear.weight.numel() // 4


# --- calibration --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["column", "row"])
def test_fisher_keeps_a_vector_for_columns_and_rows_and_it_equals_the_dense_sums(kind, tiny_model):
    tiny_model.requires_grad_(False)
    fisher = make_selector("fisher")
    _, dense = measured(tiny_model, fisher, "element")
    targets, reduced = measured(tiny_model, fisher, kind)
    for target in targets:
        (vector,) = reduced[target.name].values()
        assert vector.ndim == 1
        torch.testing.assert_close(vector, dense[target.name]["grad_sq_sum"].sum(0 if kind == "column" else 1))


@pytest.mark.parametrize("kind", ["element", "column", "row"])
def test_separable_keeps_out_plus_in_numbers_and_computes_no_weight_gradient(kind, tiny_model):
    tiny_model.requires_grad_(False)
    separable = make_selector("separable")
    needed = statistics_needed(separable, kind)
    assert needed == FLOW
    asked = []

    def loss(ids):
        asked.extend(parameter.requires_grad for parameter in tiny_model.parameters())
        return next_token_loss(tiny_model, ids)

    targets = find_targets(tiny_model)
    statistics = calibrate(targets, BATCHES, loss, needs=needed)
    assert not any(asked)
    for target in targets:
        rows, columns = target.linear.weight.shape
        assert sum(values.numel() for values in statistics[target.name].values()) == rows + columns


def test_separable_statistics_equal_those_of_plain_autograd(tiny_model):
    targets, statistics = measured(tiny_model.requires_grad_(False), make_selector("separable"), "element")
    target = targets[3]
    expected = {"input_sq": 0.0, "output_grad_sq": 0.0}
    tiny_model.requires_grad_(True)
    for ids in BATCHES:
        kept = {}
        handle = target.linear.register_forward_hook(
            lambda _, inputs, output, kept=kept: kept.update(x=inputs[0], y=output)
        )
        loss = next_token_loss(tiny_model, ids)
        handle.remove()
        (gradient,) = torch.autograd.grad(loss, kept["y"])
        expected["input_sq"] = expected["input_sq"] + kept["x"].detach().square().sum((0, 1))
        expected["output_grad_sq"] = expected["output_grad_sq"] + gradient.square().sum((0, 1))
    torch.testing.assert_close(statistics[target.name], expected)


def test_separable_equals_fisher_where_one_token_is_seen(tiny_model):
    tiny_model.requires_grad_(False)

    def loss(ids):
        return F.cross_entropy(tiny_model(ids).logits[:, -1], ids[:, 0])

    targets = find_targets(tiny_model)
    one_token = [torch.tensor([[7]])]
    scores = {}
    for name in ("separable", "fisher"):
        selector = make_selector(name)
        statistics = calibrate(targets, one_token, loss, needs=selector.needs)
        scores[name] = [selector.score(t.linear.weight, stats_of(statistics, t)) for t in targets]
    # a single token attends to itself alone, so queries and keys get no gradient
    assert sum(bool(score.any()) for score in scores["fisher"]) == 5 * 4
    torch.testing.assert_close(scores["separable"], scores["fisher"], rtol=1e-4, atol=1e-9)


def test_statistics_of_both_sorts_are_gathered_in_one_pass(tiny_model):
    tiny_model.requires_grad_(False)
    targets, together = measured(tiny_model, make_selector("fisher*separable"), "element")
    for name in ("fisher", "separable"):
        _, alone = measured(tiny_model, make_selector(name), "element")
        for target in targets:
            for statistic, values in alone[target.name].items():
                torch.testing.assert_close(together[target.name][statistic], values)


def test_calibration_leaves_the_model_as_it_was(tiny_model, weights_of):
    tiny_model.requires_grad_(False)
    before = weights_of(tiny_model)
    measured(tiny_model, make_selector("fisher*separable"), "column")
    for name, parameter in tiny_model.named_parameters():
        assert not parameter.requires_grad
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])
    assert not any(module._forward_hooks for module in tiny_model.modules())
    assert not tiny_model(BATCHES[0]).logits.requires_grad


# --- each by its formula ------------------------------------------------------------------------


def test_taylor_scores_the_weight_times_its_gradient():
    weight = torch.tensor([[2.0, -1.0], [0.0, 3.0]])
    stats = CalibrationStats(grad_sum=torch.tensor([[0.5, 4.0], [9.0, -1.0]]))
    assert make_selector("taylor").score(weight, stats).tolist() == [[1.0, 4.0], [0.0, 3.0]]


def test_adam_prefers_agreement_to_size_and_gives_untouched_entries_nothing():
    gradients = torch.tensor([[[1e-4, 5.0, 0.0]], [[1e-4, -5.0, 0.0]]])
    stats = CalibrationStats(grad_sum=gradients.sum(0), grad_sq_sum=gradients.square().sum(0))
    scores = make_selector("adam").score(torch.ones(1, 3), stats)
    torch.testing.assert_close(scores, torch.tensor([[2**0.5, 0.0, 0.0]]), rtol=1e-5, atol=0)


def test_magnitude_bottom_takes_the_smallest_weights_first():
    weight = torch.tensor([[0.1, -3.0], [0.0, 2.0]])
    scores = make_selector("magnitude_bottom").score(weight, CalibrationStats())
    assert scores.flatten().argsort(descending=True).tolist() == [2, 0, 3, 1]


def weight_with_spectrum(rows, columns):
    draw = torch.Generator().manual_seed(3)
    u, _, v = torch.linalg.svd(torch.randn(rows, columns, generator=draw), full_matrices=False)
    return u * torch.logspace(1, -3, min(rows, columns)) @ v


@pytest.mark.parametrize("shape", [(40, 24), (24, 40)])
def test_lift_scores_the_best_approximation_of_its_rank(shape):
    weight = weight_with_spectrum(*shape)
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    exact = (u[:, :5] * s[:5] @ v[:5]).abs()
    scores = LiftSelector(rank=5).score(weight, CalibrationStats(generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(scores, exact, rtol=0, atol=1e-3)
    assert not torch.allclose(scores, weight.abs(), atol=0.1)


def test_lift_of_a_rank_above_the_weight_is_magnitude():
    weight = weight_with_spectrum(6, 9)
    assert torch.equal(make_selector("lift").score(weight, CalibrationStats()), weight.abs())


def test_lift_leaves_the_global_generator_alone_and_follows_the_one_given():
    weight = weight_with_spectrum(40, 24)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = (
        LiftSelector(rank=2).score(weight, CalibrationStats(generator=torch.Generator().manual_seed(1)))
        for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)


def test_lift_refuses_a_rank_below_one():
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        LiftSelector(rank=0)


# --- combinations -------------------------------------------------------------------------------


def test_a_product_is_high_only_where_every_part_is_high():
    weight = torch.tensor([[9.0, 8.0, 0.1, 0.2]])
    stats = CalibrationStats(grad_sq_sum=torch.tensor([[0.0, 1e6, 2e6, 1.0]]))
    scores = make_selector("fisher*magnitude").score(weight, stats)
    assert scores.tolist() == [[0.25 * 1.0, 0.75 * 0.75, 1.0 * 0.25, 0.5 * 0.5]]


def test_a_product_does_not_depend_on_the_scale_of_its_parts():
    weight, stats = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), small_stats(6, 8)
    selector = make_selector("fisher*magnitude")
    assert torch.equal(selector.score(weight, stats), selector.score(weight * 1e4, stats))


def test_a_product_asks_for_column_sums_only_where_its_parts_do():
    product = make_selector("fisher*magnitude*separable")
    assert isinstance(product, UnitSelector)
    assert statistics_needed(product, "column") == {"grad_sq_columns", *FLOW}
    assert statistics_needed(product, "element") == {"grad_sq_sum", *FLOW}


def test_ranks_refuse_what_is_not_finite():
    with pytest.raises(ValueError, match="must be finite"):
        ranks(torch.tensor([1.0, torch.nan]))


def test_a_product_of_one_is_refused():
    with pytest.raises(ValueError, match="at least 2 selectors, got 1"):
        ProductSelector([make_selector("random")])


def test_a_filter_keeps_the_best_columns_and_the_scorer_orders_their_entries():
    draw = torch.Generator().manual_seed(2)
    weight, stats = torch.randn(5, 10, generator=draw), small_stats(5, 10)
    assert stats.grad_sq_columns is not None
    kept = stats.grad_sq_columns.topk(3).indices
    selector = make_selector("magnitude@fisher:0.3")
    scores = selector.score(weight, stats)
    best = scores.flatten().topk(15).indices
    assert set((best % 10).tolist()) == set(kept.tolist())
    expected = torch.full_like(weight, -1.0)
    expected[:, kept] = weight.abs()[:, kept]
    assert torch.equal(best, expected.flatten().topk(15).indices)
    assert "grad_sq_sum" not in selector.needs


def test_a_filter_narrower_than_the_density_is_refused(tiny_model):
    with pytest.raises(UsageError, match=r"density 0\.4 is above the share.*'magnitude@random:0\.3'"):
        select(
            tiny_model,
            find_targets(tiny_model),
            make_selector("magnitude@random:0.3"),
            {},
            kind="element",
            density=0.4,
            seed=0,
        )


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("fischer", "unknown selector 'fischer'; did you mean 'fisher'"),
        ("fisher*magnitud", "did you mean 'magnitude'"),
        ("fisher*", "unknown selector ''"),
        ("magnitude@fisher", "lacks the share of columns to keep; write magnitude@fisher:0.25"),
        ("magnitude@fisher:half", "must be a number, got 'half'"),
        ("magnitude@fisher:1.5", r"must be in \(0, 1\], got 1.5"),
        ("magnitude@fisher:nan", r"must be in \(0, 1\], got nan"),
        ("@fisher:0.5", "unknown selector ''"),
    ],
)
def test_a_malformed_expression_is_refused_with_its_fix(expression, message):
    with pytest.raises(UsageError, match=message):
        make_selector(expression)
