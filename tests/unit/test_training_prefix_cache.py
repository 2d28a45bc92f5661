import pytest
import torch

from sparsegate.contracts import EncodedSample
from sparsegate.data.datamodule import collate
from sparsegate.sparse.targets import decoder_layers, find_targets
from sparsegate.training.loss import supervised_loss
from sparsegate.training.prefix_cache import PrefixCache, available_bytes
from sparsegate.training.shared_start import allow_packed, pack
from sparsegate.training.state_file import StateFile

FIRST = 2  # the layers 0 and 1 are frozen
BYTES_PER_TOKEN = 32 * 4


@pytest.fixture
def runs(any_model, tmp_path):
    """A model with two frozen layers; see :class:`_Runs`."""
    any_model.requires_grad_(False)
    for target in find_targets(any_model, first_layer=FIRST):
        target.linear.weight.requires_grad_(True)
    return _Runs(any_model, tmp_path)


class _Runs:
    """A model, how often its first layer has run, and its loss with and without a cache."""

    def __init__(self, model, folder):
        self.model = model
        self._folder = folder
        self.frozen = 0
        decoder_layers(model)[1][0].mlp.register_forward_hook(self._count)

    def _count(self, *_):
        self.frozen += 1

    def cache(self, limit_bytes=1 << 30, disk_limit_bytes=0):
        file = StateFile(self._folder, limit_bytes=disk_limit_bytes)
        return PrefixCache(self.model, first_layer=FIRST, limit_bytes=limit_bytes, file=file)

    def loss(self, cache, samples):
        batch = collate(samples, pad_id=0)
        with cache.batch(batch):
            return supervised_loss(self.model, batch)

    def plain(self, samples):
        return supervised_loss(self.model, collate(samples, pad_id=0))


def _gradients(model, loss):
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.autograd.grad(loss, weights)


def test_filled_and_served_batches_have_the_loss_and_gradients_of_no_cache(runs, make_samples):
    samples, cache = make_samples(6), runs.cache()
    plain = runs.plain(samples)
    expected = _gradients(runs.model, plain)
    for _ in range(2):
        loss = runs.loss(cache, samples)
        torch.testing.assert_close(loss, plain)
        torch.testing.assert_close(_gradients(runs.model, loss), expected)


def test_a_sample_runs_through_the_frozen_layers_once(runs, make_samples):
    samples, cache = make_samples(6), runs.cache()
    for batch in (samples[:3], samples[3:], samples[1:5], samples[::-1], samples[:1]):
        torch.testing.assert_close(runs.loss(cache, batch), runs.plain(batch))
    assert runs.frozen - 5 == 2  # five of the runs were without the cache
    assert cache.size_bytes == BYTES_PER_TOKEN * sum(len(s.prompt_ids) + len(s.response_ids) for s in samples)


def test_a_batch_with_kept_and_new_samples_has_the_plain_loss_and_keeps_the_new_ones(runs, make_samples):
    samples, cache = make_samples(6), runs.cache()
    runs.loss(cache, samples[:2])
    torch.testing.assert_close(runs.loss(cache, samples), runs.plain(samples))
    before = runs.frozen
    runs.loss(cache, samples[2:])
    assert runs.frozen == before


def test_the_cache_keeps_no_more_than_its_limit_and_stays_right(runs, make_samples):
    samples = make_samples(8)
    limit = BYTES_PER_TOKEN * 40
    cache = runs.cache(limit)
    for _ in range(3):
        for batch in (samples[:4], samples[4:]):
            torch.testing.assert_close(runs.loss(cache, batch), runs.plain(batch))
    assert 0 < cache.size_bytes <= limit


def test_a_limit_of_zero_keeps_nothing(runs, make_samples):
    cache = runs.cache(0)
    runs.loss(cache, make_samples(2))
    assert cache.size_bytes == 0


@pytest.mark.parametrize("limit", [1 << 30, 0, BYTES_PER_TOKEN * 20], ids=["memory", "disk", "some of both"])
def test_what_samples_share_is_kept_once_and_served_to_plain_and_packed_batches(runs, make_samples, limit):
    assert allow_packed(runs.model)
    samples = [EncodedSample(s.id, (50, 51, 52, *s.prompt_ids), s.response_ids) for s in make_samples(8)]
    cache, before = runs.cache(limit, disk_limit_bytes=1 << 20), runs.frozen
    batches = [collate(part, pad_id=0) for part in (samples[:4], samples[4:], samples[2:7])]
    for batch in batches:
        with cache.batch(batch, shared=3):
            loss = supervised_loss(runs.model, pack(batch, 3))
        plain = supervised_loss(runs.model, batch)
        torch.testing.assert_close(loss, plain)
        torch.testing.assert_close(_gradients(runs.model, loss), _gradients(runs.model, plain))
        with cache.batch(batch):
            torch.testing.assert_close(supervised_loss(runs.model, batch), plain)
    assert runs.frozen - before == 2 + len(batches)  # those were without the cache
    own = sum(len(s.prompt_ids) - 3 + len(s.response_ids) for s in samples)
    assert cache.size_bytes <= min(limit, BYTES_PER_TOKEN * (3 + own))
    assert (cache.size_bytes == BYTES_PER_TOKEN * (3 + own)) == (limit == 1 << 30)


@pytest.mark.parametrize("limit", [0, BYTES_PER_TOKEN * 40], ids=["all on disk", "some in memory"])
def test_states_on_disk_give_the_very_same_losses_and_gradients_as_in_memory(runs, make_samples, limit):
    samples, memory, mixed = make_samples(8), runs.cache(), runs.cache(limit, disk_limit_bytes=1 << 20)
    for batch in (samples[:4], samples[4:]):
        runs.loss(memory, batch)
        runs.loss(mixed, batch)
    before = runs.frozen
    for batch in (samples[2:6], samples[::-1]):
        expected, loss = runs.loss(memory, batch), runs.loss(mixed, batch)
        assert torch.equal(loss, expected)
        gradients = zip(_gradients(runs.model, loss), _gradients(runs.model, expected), strict=True)
        assert all(torch.equal(one, other) for one, other in gradients)
    assert runs.frozen == before
    assert mixed.size_bytes <= limit


def test_samples_beyond_both_limits_run_through_the_frozen_layers_and_stay_right(runs, make_samples):
    samples, cache = make_samples(8), runs.cache(0, disk_limit_bytes=BYTES_PER_TOKEN * 20)
    for _ in range(2):
        before = runs.frozen
        torch.testing.assert_close(runs.loss(cache, samples), runs.plain(samples))
        assert runs.frozen == before + 2
    assert cache.limits == (0, BYTES_PER_TOKEN * 20)


def test_filling_runs_the_frozen_layers_only_and_keeps_the_very_same_states(runs, make_samples):
    samples = make_samples(5)
    upper = []
    handle = decoder_layers(runs.model)[1][FIRST].mlp.register_forward_hook(lambda *_: upper.append(1))
    filled, served = runs.cache(), runs.cache()
    filled.fill(collate(samples, pad_id=0))
    assert upper == []
    handle.remove()
    loss = runs.loss(served, samples)
    assert filled.size_bytes == served.size_bytes
    assert torch.equal(runs.loss(filled, samples), loss)


def test_a_failed_pass_leaves_the_model_as_it_was(runs, make_samples):
    samples, cache = make_samples(3), runs.cache()
    runs.loss(cache, samples)
    with pytest.raises(RuntimeError, match="out of memory"), cache.batch(collate(samples, pad_id=0)):
        raise RuntimeError("out of memory")
    assert not any("forward" in vars(layer) for layer in decoder_layers(runs.model)[1])
    before = runs.frozen
    runs.plain(samples)
    assert runs.frozen == before + 1


def test_a_pass_through_the_frozen_layers_that_fails_reports_its_own_error_and_keeps_nothing(runs, make_samples):
    def fail(*_):
        raise RuntimeError("out of memory")

    cache = runs.cache()
    handle = decoder_layers(runs.model)[1][0].register_forward_pre_hook(fail)
    with handle, pytest.raises(RuntimeError, match="out of memory"):
        runs.loss(cache, make_samples(3))
    assert cache.size_bytes == 0
    assert not decoder_layers(runs.model)[1][FIRST]._forward_pre_hooks


def test_the_default_limit_is_a_part_of_the_free_memory():
    assert 0 < available_bytes(torch.device("cpu")) < 1 << 50
