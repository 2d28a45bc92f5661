"""One measurement, on a tiny model of random weights, for every method of the table."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import pytest
import torch

from sparsegate.errors import ModelError, UsageError
from sparsegate.workflow.bench.base import RANDOM_MODELS, find_base, load_base
from sparsegate.workflow.bench.measure import Job, _saved_storages, measure
from sparsegate.workflow.bench.methods import METHODS
from sparsegate.workflow.bench.options import DEFAULT_METHODS
from sparsegate.workflow.bench.result import Measurement

needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="the optional package peft is not installed")
# transformers warns of a name that PEFT reads, and torch of the sparse tensors that PEFT's SHiRA makes
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning"),
]


def _job(method: str) -> Job:
    return Job(
        method=method,
        model="random:llama-tiny",
        device="cpu",
        dtype="float32",
        batch_size=2,
        tokens=16,
        supervised=4,
        warmup=2,
        steps=2,
        threads=torch.get_num_threads(),
        seed=0,
    )


def _measured(method: str) -> Measurement:
    if METHODS[method.partition(":")[0]].needs_peft:
        pytest.importorskip("peft", reason="the optional package peft is not installed")
    return measure(_job(method))


@pytest.mark.parametrize("method", DEFAULT_METHODS)
def test_every_method_gives_every_figure_and_starts_at_the_same_loss(method: str) -> None:
    figures = _measured(method)
    parts = [figures.forward_seconds, figures.backward_seconds, figures.optimizer_seconds, figures.step_seconds]
    assert all(seconds > 0 for seconds in parts)
    assert (figures.refresh_seconds > 0) == (method == "adalora")
    peaks = (figures.load_peak_memory_bytes, figures.selection_peak_memory_bytes, figures.steps_peak_memory_bytes)
    assert figures.peak_memory_bytes == max(peaks) > 0
    assert figures.trainable_state_bytes > 0
    assert figures.saved_activation_bytes > 0
    assert figures.artifact_bytes > 0
    # AdaLoRA adds a penalty to its loss
    reference = measure(_job("full-ours")).first_loss_nats
    assert figures.first_loss_nats == pytest.approx(reference, abs=1e-5) or method == "adalora"


def test_full_fine_tuning_counts_value_gradient_and_two_moments_of_every_weight() -> None:
    figures = _measured("full")
    counters = 4 * 32  # AdamW's step count of each tensor, and the rotary frequencies' buffer
    assert figures.trainable_parameters == figures.total_parameters
    assert 0 <= figures.trainable_state_bytes - 16 * figures.total_parameters <= counters
    assert figures.artifact_bytes >= 4 * figures.total_parameters


@needs_peft
def test_shira_counts_the_indices_that_it_keeps_outside_of_parameters_and_buffers() -> None:
    figures = _measured("shira")
    values_gradients_moments, row_and_column = 16, 2 * 4
    per_value = values_gradients_moments + row_and_column
    assert figures.trainable_state_bytes >= per_value * figures.trainable_parameters


def test_a_sparse_method_trains_its_density_and_writes_a_small_delta() -> None:
    figures, full = _measured("sparse:element:density=0.1"), _measured("full-ours")
    linear_weights = 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    assert figures.trainable_parameters == pytest.approx(0.1 * linear_weights, rel=0.01)
    assert figures.trainable_state_bytes < full.trainable_state_bytes / 4
    assert figures.artifact_bytes < full.artifact_bytes / 2


def test_a_refresh_is_part_of_the_step_and_leaves_the_number_of_trained_entries() -> None:
    static, refreshed = _measured("sparse:column"), _measured("sparse:column:refresh=2")
    assert static.refresh_seconds == 0
    assert 0 < refreshed.refresh_seconds < refreshed.step_seconds
    assert refreshed.trainable_parameters == static.trainable_parameters
    assert refreshed.artifact_bytes == static.artifact_bytes


def test_our_loss_and_a_cut_each_save_activations() -> None:
    plain = _measured("sparse:column:plain_loss").saved_activation_bytes
    ours = _measured("sparse:column").saved_activation_bytes
    cut = _measured("sparse:column:cut=0.667").saved_activation_bytes
    assert plain > ours > cut


def test_the_same_job_draws_the_same_batches() -> None:
    assert measure(_job("sparse:column")).first_loss_nats == measure(_job("sparse:column")).first_loss_nats


def test_a_storage_that_is_saved_twice_counts_once() -> None:
    x = torch.ones(10, requires_grad=True)
    y = x.exp()
    with _saved_storages() as saved:
        product = y * y.view(2, 5).flatten()
    assert sum(saved.values()) == 10 * 4
    product.sum().backward()


def test_without_peft_an_adapter_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match=r"pip install 'sparsegate\[bench\]'"):
        measure(_job("lora"))


def test_an_unknown_random_model_is_refused_with_the_choices() -> None:
    with pytest.raises(ModelError, match=r"unknown random model 'llama-2b'; did you mean 'llama-1b'\?"):
        find_base("random:llama-2b")


def test_the_large_random_model_has_the_size_of_its_name() -> None:
    with torch.device("meta"):
        model = load_base("random:llama-1b", device=torch.device("meta"), dtype="bfloat16")
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(1.24e9, rel=0.01)
    assert next(model.parameters()).dtype is torch.bfloat16
    assert set(RANDOM_MODELS) == {"llama-1b", "llama-tiny"}
