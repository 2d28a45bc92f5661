import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparsegate.contracts import EncodedSample
from sparsegate.data.datamodule import IGNORED, collate
from sparsegate.sparse.cost_model import BatchShape, CostModel
from sparsegate.sparse.layers import sparse_layers
from sparsegate.sparse.targets import decoder_layers
from sparsegate.training.loss import num_supervised, supervised_loss
from sparsegate.training.module import SparseFineTuner


@pytest.fixture
def batch(make_samples):
    return collate(make_samples(6, longest=40), pad_id=0)


@pytest.fixture
def costs(batch, make_model):
    def costs(family, kind):
        sequences, width = batch["input_ids"].shape
        supervised = int((batch["labels"][:, 1:] != IGNORED).sum())
        return CostModel(make_model(family), kind=kind, batch=BatchShape(sequences, width, supervised))

    return costs


@pytest.fixture
def tune(make_model, batch):
    def tune(family, kind, frozen_depth, *, attention, cache_prefix=False):
        model = make_model(family)
        model.set_attn_implementation(attention)
        tuner = SparseFineTuner(
            model,
            selector="random",
            support=kind,
            density=0.25,
            frozen_depth=frozen_depth,
            cache_prefix=cache_prefix,
        )
        tuner.select([batch])
        return tuner

    return tune


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma"])
@pytest.mark.parametrize("kind", ["column", "row", "element"])
@pytest.mark.parametrize("first_layer", [0, 1, 3])
def test_flops_of_a_step_are_those_that_torch_counts(tune, costs, batch, count_flops, family, kind, first_layer):
    tuner = tune(family, kind, first_layer / 4, attention="eager")  # torch does not count fused attention on the CPU
    with count_flops() as counter:
        tuner.loss(batch).backward()
    predicted = costs(family, kind).step_flops(first_layer=first_layer, density=0.25, cached=False)
    assert predicted == pytest.approx(counter.count, rel=0.01)


def test_flops_of_a_step_from_the_prefix_cache_are_those_that_torch_counts(tune, costs, batch, count_flops):
    tuner = tune("llama", "column", 0.5, attention="eager", cache_prefix=True)
    tuner.loss(batch)
    with count_flops() as counter:
        tuner.loss(batch).backward()
    predicted = costs("llama", "column").step_flops(first_layer=2, density=0.25, cached=True)
    assert predicted == pytest.approx(counter.count, rel=0.01)


def test_flops_of_full_fine_tuning_are_those_that_torch_counts(any_model, costs, batch, count_flops):
    any_model.set_attn_implementation("eager")
    any_model.requires_grad_(True)
    with count_flops() as counter:
        supervised_loss(any_model, batch).backward()
    predicted = costs(any_model.config.model_type, "column").full_step_flops()
    assert predicted == pytest.approx(counter.count, rel=0.01)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma"])
@pytest.mark.parametrize("kind", ["column", "row", "element"])
@pytest.mark.parametrize("first_layer", [0, 2])
def test_activation_bytes_are_within_5_percent_of_what_autograd_saves(tune, costs, batch, family, kind, first_layer):
    measured = _saved_bytes(tune(family, kind, first_layer / 4, attention="sdpa"), batch)
    predicted = costs(family, kind).activation_bytes(first_layer=first_layer, density=0.25)
    assert predicted == pytest.approx(measured, rel=0.05)


def _saved_bytes(tuner, batch):
    """What autograd saves of a batch's forward pass, weights apart."""
    model = tuner.model
    fixed = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved = {}  # storages, each counted once; held, so that none is used again

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in fixed:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        tuner.loss(batch)
    return sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma"])
@pytest.mark.parametrize("first_layer", [0, 2])
def test_a_start_that_all_sequences_share_counts_as_torch_counts_it(
    make_model, make_samples, count_flops, family, first_layer
):
    samples = [EncodedSample(s.id, (50, 51, 52, 53, *s.prompt_ids), s.response_ids) for s in make_samples(6)]
    batch = collate(samples, pad_id=0)
    sequences, width = batch["input_ids"].shape
    shape = BatchShape(sequences, width, num_supervised(batch), shared=4)
    costs = CostModel(make_model(family), kind="column", batch=shape)
    tuner = SparseFineTuner(
        make_model(family), selector="random", density=0.25, frozen_depth=first_layer / 4, cache_prefix=False
    )
    tuner.select([batch])
    saved = _saved_bytes(tuner, batch)
    assert costs.activation_bytes(first_layer=first_layer, density=0.25) == pytest.approx(saved, rel=0.05)
    with sdpa_kernel(SDPBackend.MATH), count_flops() as counter:  # in matrix products, which are counted
        tuner.loss(batch).backward()
    step = costs.step_flops(first_layer=first_layer, density=0.25, cached=False)
    assert step == pytest.approx(counter.count, rel=0.01)
    plain = CostModel(make_model(family), kind="column", batch=shape._replace(shared=0))
    assert costs.full_step_flops() == plain.full_step_flops()


@pytest.mark.parametrize("kind", ["column", "row", "element"])
def test_state_bytes_are_those_of_values_gradients_moments_originals_and_ids(tune, costs, kind):
    model = tune("llama", kind, 0.5, attention="sdpa").model
    supports = [layer.support for layer in sparse_layers(model).values()]
    assert len(decoder_layers(model)[1]) == 4
    held = sum(
        4 * s.values.numel() * s.values.element_size()
        + s.originals.numel() * s.originals.element_size()
        + s.ids.numel() * s.ids.element_size()
        for s in supports
    )
    assert costs("llama", kind).state_bytes(first_layer=2, density=0.25) == held
