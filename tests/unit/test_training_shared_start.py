import lightning as L
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    BartConfig,
    BartForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from sparsegate.contracts import EncodedSample
from sparsegate.data.datamodule import SampleDataModule, collate
from sparsegate.sparse import layouts
from sparsegate.sparse.layers import sparse_layers
from sparsegate.sparse.optimizer import make_optimizer
from sparsegate.sparse.targets import decoder_layers
from sparsegate.training.loss import num_supervised, supervised_loss
from sparsegate.training.module import SparseFineTuner
from sparsegate.training.refresh import refresh
from sparsegate.training.shared_start import (
    allow_packed,
    disallow_packed,
    pack,
    pack_rows,
    shared_length,
    unpack_rows,
)

KINDS = ("column", "row", "block", "element")
START = (40, 41, 42, 43, 44)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(layouts, "BLOCK", 2)


@pytest.fixture
def samples(make_samples):
    return _after(START, make_samples(24))


@pytest.fixture
def batch(samples):
    return collate(samples[:6], pad_id=0)


def _after(start, samples):
    return [EncodedSample(sample.id, start + sample.prompt_ids, sample.response_ids) for sample in samples]


def _tokens_seen(model):
    """How many tokens each pass through the last layer's MLP has from now on."""
    seen = []
    mlp = decoder_layers(model)[1][-1].mlp
    mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[:-1].numel()))
    return seen


def _plain(model):
    """Let a model run what samples share for each of them."""
    model.set_attn_implementation("eager")
    return model


# --- what is shared -----------------------------------------------------------------------------


def _collate(*rows):
    return collate([EncodedSample(str(i), prompt, response) for i, (prompt, response) in enumerate(rows)], pad_id=0)


@pytest.mark.parametrize(
    ("rows", "length"),
    [
        ([((5, 6, 7), (8,)), ((5, 6, 9), (8,))], 2),
        ([((5, 6, 7), (8,)), ((6, 6, 7), (8,))], 0),
        ([((5, 6, 7), (8,))], 0),  # one sample shares with none
        ([((5, 6, 7), (8,)), ((5, 6, 7), (9,))], 2),  # the third token predicts for its own sample
        ([((5, 6, 7, 8), (9,)), ((5, 6), (7, 8, 9))], 1),  # as far as the shortest prompt
        ([((5,), (8,)), ((5,), (8,))], 0),
        ([((5, 0, 0, 7), (8,)), ((5,), (6,))], 0),  # padding is no token
    ],
)
def test_the_shared_start_ends_before_the_first_token_that_differs_or_predicts(rows, length):
    assert shared_length(_collate(*rows)) == length


def test_of_a_batch_without_supervised_tokens_the_last_token_is_not_shared():
    batch = _collate(((5, 6), (7,)), ((5, 6), (7,)))
    batch["labels"].fill_(-100)
    assert shared_length(batch) == 2


def test_a_batch_padded_on_the_left_shares_nothing():
    batch = _collate(((5, 6, 7), (8,)), ((5, 6, 7), (8,)))
    batch["attention_mask"][:, 0] = 0
    assert shared_length(batch) == 0


# --- the same loss and gradients ----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_and_the_gradients_of_every_support_are_those_of_the_plain_batch(any_model, batch, kind, small_blocks):
    tuner = SparseFineTuner(any_model.double(), support=kind, selector="random", density=0.2, frozen_depth=0)
    tuner.select([batch])
    values = [layer.support.values for layer in sparse_layers(tuner.model).values()]
    plain = supervised_loss(tuner.model, batch)
    expected = torch.autograd.grad(plain, values)
    seen = _tokens_seen(tuner.model)
    loss = tuner.loss(batch)
    samples, width = batch["input_ids"].shape
    assert seen == [len(START) + samples * (width - len(START))]
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(torch.autograd.grad(loss, values), expected, rtol=1e-5, atol=1e-7)


_CACHED_MODELS = {}


def _double_model(make_model, family):
    if family not in _CACHED_MODELS:
        model = make_model(family).double()
        assert allow_packed(model)
        _CACHED_MODELS[family] = model
    return _CACHED_MODELS[family]


_token = st.integers(2, 95)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), family=st.sampled_from(["llama", "gpt2"]))
def test_whatever_samples_share_gradients_of_all_weights_are_the_plain_ones(make_model, data, family):
    start = tuple(data.draw(st.lists(_token, max_size=6), label="start"))
    prompts = st.lists(_token, min_size=0 if start else 1, max_size=4)  # none of its own: all tokens but one are shared
    rows = data.draw(st.lists(st.tuples(prompts, st.lists(_token, max_size=2)), min_size=1, max_size=4), label="rows")
    batch = _collate(*((start + tuple(prompt), tuple(response)) for prompt, response in rows))
    shared = shared_length(batch)
    model = _double_model(make_model, family)
    packed = pack(batch, shared)
    samples, width = batch["input_ids"].shape
    assert packed["input_ids"].numel() == shared + samples * (width - shared) <= samples * width
    assert num_supervised(packed) == num_supervised(batch)
    for rows_of_tokens in (batch["input_ids"], batch["labels"][..., None]):
        back = unpack_rows(pack_rows(rows_of_tokens, shared), shared, samples)
        assert torch.equal(back, rows_of_tokens)
    losses = [supervised_loss(model, each) for each in (batch, packed)]
    torch.testing.assert_close(*losses)
    gradients = [torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True) for loss in losses]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)  # norms and rotations are taken in fp32


def test_responses_whose_logits_are_made_in_parts_have_the_plain_loss_and_gradients(make_model, batch):
    model = make_model("llama").double()
    assert allow_packed(model)
    losses = [supervised_loss(model, each, max_logit_rows=4) for each in (batch, pack(batch, len(START)))]
    torch.testing.assert_close(*losses)
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)


def test_rows_of_the_embedding_and_of_a_tied_head_get_the_plain_gradients(make_model, batch):
    tuner = SparseFineTuner(make_model("qwen2").double(), density=0.3, frozen_depth=0, train_embeddings=True)
    tuner.select([batch])
    values = [layer.support.values for layer in sparse_layers(tuner.model).values()]
    losses = [tuner.loss(batch), supervised_loss(tuner.model, batch)]
    gradients = [torch.autograd.grad(loss, values) for loss in losses]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_low_precision_rounds_and_no_more(make_model, batch, precision):
    plain = float(supervised_loss(make_model("llama"), batch).detach())
    model = make_model("llama").to(precision)
    assert allow_packed(model)
    for each in (batch, pack(batch, len(START))):
        assert float(supervised_loss(model, each).detach()) == pytest.approx(plain, rel=0.02)


# --- the same training --------------------------------------------------------------------------


def _fit(model, samples, tmp_path, *, epochs=2, steps=-1, resume_from=None, callbacks=(), **options):
    trainer_options = {name: options.pop(name) for name in ("accumulate_grad_batches",) if name in options}
    tuner = SparseFineTuner(model, density=0.25, learning_rate=1e-2, **options)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        max_steps=steps,
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
        **trainer_options,
    )
    validation = _after(START, [EncodedSample(f"v{i}", (50 + i, 51), (6, 7)) for i in range(4)])
    data = SampleDataModule(samples, validation, batch_size=4, pad_id=0)
    trainer.fit(tuner, datamodule=data, ckpt_path=resume_from, weights_only=True if resume_from else None)
    return tuner


def _trained(tuner):
    return [layer.support.values.detach() for layer in sparse_layers(tuner.model).values()]


@pytest.mark.parametrize(
    "options",
    [
        {"frozen_depth": 0.0},
        {"frozen_depth": 0.5, "cache_prefix": False},
        {"frozen_depth": 0.5, "accumulate_grad_batches": 4},
        {"frozen_depth": 0.5, "support": "element", "checkpoint_activations": True},
        {"frozen_depth": 0.5, "support": "row", "trim_heap": True},
    ],
    ids=["no cut", "cut", "cached and accumulated", "checkpointed", "trimmed"],
)
def test_training_arrives_where_plain_training_does(make_model, samples, tmp_path, options):
    ours, plain = (
        _fit(model, samples, tmp_path, **options) for model in (make_model("llama"), _plain(make_model("llama")))
    )
    torch.testing.assert_close(_trained(ours), _trained(plain), rtol=0, atol=1e-5)
    for name, value in plain.trainer.callback_metrics.items():
        torch.testing.assert_close(ours.trainer.callback_metrics[name], value)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # the second writes no checkpoints
@pytest.mark.parametrize("selector", ["fisher", "separable"])
def test_a_resumed_run_ends_bit_for_bit_where_an_unbroken_one_does(make_model, samples, tmp_path, selector):
    keep = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    options = {"selector": selector, "frozen_depth": 0.5}
    whole = _fit(make_model("llama"), samples, tmp_path, steps=12, callbacks=[keep], **options)
    path = tmp_path / "step=4.ckpt"  # in the first pass
    resumed = _fit(make_model("llama"), samples, tmp_path, steps=12, resume_from=path, **options)
    assert all(torch.equal(one, other) for one, other in zip(_trained(whole), _trained(resumed), strict=True))


@pytest.mark.parametrize("selector", ["fisher", "adam", "separable"])
def test_the_same_entries_are_selected_as_by_plain_batches(make_model, batch, selector):
    chosen = []
    for model in (make_model("llama"), _plain(make_model("llama"))):
        tuner = SparseFineTuner(model, selector=selector, density=0.1, frozen_depth=0.25)
        tuner.select([batch])
        chosen.append([layer.support.ids for layer in sparse_layers(model).values()])
    assert all(torch.equal(ours, plain) for ours, plain in zip(*chosen, strict=True))


def test_a_refresh_finds_what_it_finds_by_plain_batches(make_model, batch):
    found = []
    for model in (make_model("llama"), _plain(make_model("llama"))):
        tuner = SparseFineTuner(model, selector="random", density=0.25, frozen_depth=0.5)
        tuner.select([batch])
        optimizer = make_optimizer(model, learning_rate=1e-2, weight_decay=0.0)
        tuner.loss(batch).backward()
        optimizer.step()
        found.append(refresh(tuner, optimizer, [batch], below=1.0, fraction=0.5, margin=1.0, minimum_age=0))
    ours, plain = found
    assert ours.retention == pytest.approx(plain.retention, rel=1e-4)
    assert ours.exchanged == plain.exchanged


# --- what it saves ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["column", "row", "element"])
def test_a_step_takes_the_operations_of_the_tokens_that_are_left(make_model, batch, count_flops, family, kind):
    tuner = SparseFineTuner(make_model(family), support=kind, selector="random", frozen_depth=0, density=0.2)
    tuner.select([batch])
    counts = []
    with sdpa_kernel(SDPBackend.MATH):  # in matrix products, which are counted
        for loss in (lambda: supervised_loss(tuner.model, batch), lambda: tuner.loss(batch)):
            with count_flops() as counter:
                loss().backward()
            counts.append(counter.count)
    samples, width = batch["input_ids"].shape
    tokens = len(START) + samples * (width - len(START))
    head = 4 * num_supervised(batch) * tuner.model.get_output_embeddings().weight.numel()
    assert (counts[1] - head) / (counts[0] - head) == pytest.approx(tokens / (samples * width), abs=0.02)


@pytest.mark.parametrize("shared", [0, 1, 2, 7])
def test_no_shared_length_takes_more_operations(make_model, make_samples, count_flops, shared):
    batch = collate(_after(START[:1] * shared, make_samples(2, longest=2)), pad_id=0)
    model = make_model("llama")
    assert allow_packed(model)
    counts = []
    with sdpa_kernel(SDPBackend.MATH):
        for each in (batch, pack(batch, shared_length(batch))):
            with count_flops() as counter:
                supervised_loss(model, each).backward()
            counts.append(counter.count)
    assert counts[1] < counts[0] if shared else counts[1] == counts[0]


@pytest.mark.parametrize("kind", ["column", "row", "element"])
def test_less_is_kept_for_the_backward_pass(make_model, batch, kind):
    tuner = SparseFineTuner(make_model("llama"), support=kind, selector="random", frozen_depth=0)
    tuner.select([batch])
    fixed = {tensor.untyped_storage().data_ptr() for tensor in (*tuner.model.parameters(), *tuner.model.buffers())}
    sizes = []
    for loss in (lambda: supervised_loss(tuner.model, batch), lambda: tuner.loss(batch)):
        saved = {}  # storages, held so that none is used again

        def hold(tensor, saved=saved):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
            loss()
        sizes.append(sum(storage.nbytes() for at, storage in saved.items() if at not in fixed))
    assert sizes[1] < 0.95 * sizes[0]


# --- models that can't --------------------------------------------------------------------------

_SIZES = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0, "bos_token_id": None}
_HEADS = {**_SIZES, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
_OTHERS = {
    "dropout in attention": lambda: LlamaForCausalLM(LlamaConfig(**_HEADS, attention_dropout=0.1)),
    "dropout modules": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4)),
    "windows": lambda: Qwen2ForCausalLM(
        Qwen2Config(**_HEADS, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    ),
    "windows in some layers": lambda: Gemma2ForCausalLM(Gemma2Config(**_HEADS, head_dim=8)),
    "positions that can't be given": lambda: BartForCausalLM(
        BartConfig(vocab_size=96, d_model=32, decoder_layers=2, decoder_attention_heads=4, dropout=0.0)
    ),
    "biases from the mask": lambda: BloomForCausalLM(BloomConfig(vocab_size=96, hidden_size=32, n_layer=2, n_head=4)),
    "no attention": lambda: MambaForCausalLM(MambaConfig(**_SIZES, state_size=4)),
}


@pytest.mark.parametrize("name", _OTHERS)
def test_models_that_would_differ_run_plain_batches_only_and_stay_as_they_were(name):
    torch.manual_seed(0)
    model = _OTHERS[name]().eval()
    before = model.config._attn_implementation
    drawn = torch.get_rng_state()
    assert not allow_packed(model)
    assert model.config._attn_implementation == before
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_model_with_another_attention_than_sdpa_gives_the_loss_of_the_plain_batch(make_model, batch):
    model = _plain(make_model("llama"))
    tuner = SparseFineTuner(model, selector="random", frozen_depth=0.5)
    tuner.select([batch])
    seen = _tokens_seen(model)
    assert torch.equal(tuner.loss(batch), supervised_loss(model, batch))
    assert seen[0] == batch["input_ids"].numel()
    assert model.config._attn_implementation == "eager"


def test_a_prepared_model_gives_plain_batches_the_very_same_logits(any_model, batch):
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    expected = any_model(**inputs).logits
    assert allow_packed(any_model)
    assert torch.equal(any_model(**inputs).logits, expected)
    disallow_packed(any_model)
    assert any_model.config._attn_implementation == "sdpa"


def test_a_tuner_that_was_never_finished_does_not_keep_the_next_one_from_sharing(tiny_model, batch):
    for _ in range(2):
        tuner = SparseFineTuner(tiny_model, selector="random", frozen_depth=0)
    tuner.select([batch])
    seen = _tokens_seen(tiny_model)
    tuner.loss(batch)
    assert seen[0] < batch["input_ids"].numel()


def test_a_finished_model_has_its_own_attention_again(tiny_model):
    assert SparseFineTuner(tiny_model).finish().config._attn_implementation == "sdpa"
