from dataclasses import replace

import pytest
import torch

from sparsegate.errors import UsageError
from sparsegate.sparse.cost_model import BatchShape
from sparsegate.workflow.bench.measure import Job, measure
from sparsegate.workflow.pilot.projection import (
    CPU_PROCESS,
    CUDA_DEVICE,
    GpuClass,
    ModelShape,
    Overhead,
    ProjectionConfig,
    empty_model,
    estimate_memory,
    project,
)

NOTHING = Overhead(0, 0, 0, 0)
# as random:llama-tiny
TINY = ModelShape("tiny", 3, 64, 128, 4, 2, 256, tied=True)
# shapes of SmolLM2-135M, and figures of `sparsegate bench` on 2026-11-25, two threads, batch 8 x 128, 8 supervised
SMOLLM2 = ModelShape("SmolLM2-135M", 30, 576, 1536, 9, 3, 49152, tied=True)
MEASURED_MB = {
    "full": 4588,
    "full-ours": 4388,
    "lora": 4172,
    "lora-ours": 3388,
    "sparse:column:density=0.05": 2574,
    "sparse:column:density=0.05:plain_loss": 3176,
    "sparse:block:density=0.05": 2815,
    "sparse:row:density=0.05": 2856,
    "sparse:element:density=0.05": 2871,
    "sparse:column:density=0.05:cut=0.333": 2154,
    "sparse:column:density=0.05:cut=0.667": 1639,
    "sparse:column:density=0.05:cut=0.667:trim": 1447,
}
SMALL = ProjectionConfig(models=(TINY,), devices=(GpuClass("large", 2), GpuClass("small", 1.01)), tokens=64)


# peft 0.21 asks transformers 5.24 in the old way
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["full", "lora", "sparse:column:density=0.25"])
def test_what_is_kept_and_the_optimizers_state_are_those_that_are_measured(method, dtype):
    if method.startswith("lora"):
        pytest.importorskip("peft", reason="the optional package peft is not installed")
    job = Job(method, "random:llama-tiny", "cpu", dtype, 4, 64, 8, warmup=1, steps=1, threads=1, seed=0)
    measured = measure(job)
    batch = BatchShape(4, 64, 4 * 8, padded=False)
    predicted = estimate_memory(empty_model(TINY, dtype), method, batch, overhead=NOTHING)
    assert predicted.activations == pytest.approx(measured.saved_activation_bytes, rel=0.06)
    if method.startswith("full"):
        with_gradients = predicted.state + 2 * predicted.weights
        assert with_gradients == pytest.approx(measured.trainable_state_bytes, rel=0.01)
    else:
        assert predicted.state == pytest.approx(measured.trainable_state_bytes, rel=0.01)


@pytest.mark.parametrize("method", MEASURED_MB)
def test_the_peak_is_within_15_percent_of_the_benchmark(method):
    batch = BatchShape(8, 128, 8 * 8, padded=False)
    predicted = estimate_memory(empty_model(SMOLLM2, "float32"), method, batch, overhead=CPU_PROCESS)
    assert predicted.total / 1e6 == pytest.approx(MEASURED_MB[method], rel=0.15)


def test_each_method_gets_the_smallest_device_that_holds_it():
    light, heavy = "sparse:column:density=0.01:cut=0.667", "full"
    found = {fit.arm: fit for fit in project([light, heavy, "dora"], SMALL)}
    assert list(found) == [light, heavy]  # there is no model of DoRA's memory
    assert (found[light].device, found[light].device_bytes) == ("small", 1_010_000_000)
    assert found[heavy].memory_bytes > found[light].memory_bytes > CUDA_DEVICE.fixed_bytes
    none = project([light], replace(SMALL, devices=(GpuClass("tiny", 0.5),)))
    assert (none[0].device, none[0].device_bytes) == (None, None)


def test_a_planned_cut_is_projected_at_the_share_that_was_frozen():
    planned, fixed = "sparse:column:density=0.1:cut=auto", "sparse:column:density=0.1:cut=0.5"
    model, batch = empty_model(ModelShape("deep", 8, 64, 128, 4, 2, 256)), BatchShape(4, 64, 32)
    half = estimate_memory(model, planned, batch, overhead=NOTHING, cut=0.5)
    assert half == estimate_memory(model, fixed, batch, overhead=NOTHING)
    assert half.total < estimate_memory(model, planned, batch, overhead=NOTHING).total


def test_master_weights_cost_twelve_bytes_for_each_parameter():
    model, batch = empty_model(TINY), BatchShape(4, 64, 32)
    found = estimate_memory(model, "full", batch, overhead=NOTHING, master_weights=True)
    assert found.state == 12 * sum(parameter.numel() for parameter in model.parameters())


def test_the_default_models_have_the_parameters_that_their_names_say():
    counts = [sum(p.numel() for p in empty_model(shape).parameters()) / 1e9 for shape in ProjectionConfig().models]
    assert counts == pytest.approx([6.74, 13.02, 68.98], abs=0.01)
    assert all(p.device == torch.device("meta") for p in empty_model(ProjectionConfig().models[2]).parameters())


@pytest.mark.parametrize("method", ["dora", "sparse:column:refresh=4"])
def test_a_method_without_a_memory_model_says_so(method):
    with pytest.raises(UsageError, match=f"no memory model for '{method}'"):
        estimate_memory(empty_model(TINY), method, BatchShape(1, 8, 1), overhead=NOTHING)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (replace(TINY, layers=0), "layers must be at least 1, got 0"),
        (replace(TINY, heads=3), "heads must divide hidden"),
        (GpuClass("none", 0), "memory_gb must be above 0, got 0"),
        (replace(SMALL, batch_size=0), "batch_size must be at least 1, got 0"),
        (replace(SMALL, supervised=65), "supervised must be at most tokens, got 65 and 64"),
    ],
)
def test_a_setting_that_can_not_be_is_named(wrong, problem):
    assert problem in " ".join(wrong.problems().values())
    assert replace(SMALL).problems() == {}
