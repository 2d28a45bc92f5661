"""Whatever is trained, and however: a weight that was not selected keeps its bits."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback
from transformers import LlamaConfig, LlamaForCausalLM

from sparsegate.config import TrainingConfig
from sparsegate.sparse.delta import read_delta
from sparsegate.sparse.layouts import BLOCK, LAYOUTS
from sparsegate.training.run import train

SIDES = [BLOCK, 2 * BLOCK]


@st.composite
def shapes(draw, is_block):
    """Draw the configuration of a tiny model; block supports need sides that are multiples of a block's."""
    key_heads = draw(st.integers(1, 2))
    heads = key_heads * draw(st.integers(1, 2))
    head_width = draw(st.sampled_from(SIDES if is_block else [2, 6, 8]))
    hidden = draw(st.sampled_from(SIDES)) if is_block else heads * draw(st.integers(2, 7))
    return LlamaConfig(
        vocab_size=96,
        hidden_size=hidden,
        head_dim=head_width,
        intermediate_size=draw(st.sampled_from(SIDES)) if is_block else draw(st.integers(3, 40)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        attention_bias=draw(st.booleans()),
        tie_word_embeddings=draw(st.booleans()),
        pad_token_id=0,
    )


@st.composite
def trainings(draw):
    kind = draw(st.sampled_from(sorted(LAYOUTS)))
    config = TrainingConfig(
        accelerator="cpu",
        selector=draw(st.sampled_from(["random", "fisher", "magnitude_bottom"])),
        support=kind,
        density=draw(st.floats(0.01, 0.9)),
        frozen_depth=draw(st.sampled_from([0.0, 0.34, 0.5])),
        cache_prefix=draw(st.booleans()),
        learning_rate=draw(st.sampled_from([1e-5, 1e-2])),
        weight_decay=draw(st.sampled_from([0.0, 0.1])),
        max_steps=draw(st.integers(2, 5)),
        batch_size=draw(st.integers(1, 5)),
        accumulate_batches=draw(st.integers(1, 2)),
        checkpoint_activations=draw(st.booleans()),
        precision=draw(st.sampled_from(["32-true", "bf16-true", "bf16-mixed"])),
        epochs=20,
        checkpoint_every_steps=1,
    )
    return config, draw(shapes(kind == "block")), draw(st.booleans())


class _KilledError(Exception):
    pass


class _Kill(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == trainer.max_steps - 1:
            raise _KilledError


def _build(shape):
    torch.manual_seed(0)
    return LlamaForCausalLM(shape).eval()


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(training=trainings())
def test_weights_that_were_not_selected_are_bit_identical_after_any_training(training, make_samples, weights_of):
    config, shape, is_killed = training
    model = _build(shape)
    with tempfile.TemporaryDirectory() as folder:
        options = {"validation": [], "pad_id": 0, "base_digest": "abc", "output_dir": Path(folder)}
        if is_killed:
            with pytest.raises(_KilledError):
                train(_build(shape), make_samples(8), config=config, callbacks=[_Kill()], **options)
            assert (Path(folder) / "checkpoints" / "last.ckpt").exists()
        outcome = train(model, make_samples(8), config=config, **options)
        entries = read_delta(outcome.delta).entries
    assert outcome.cost.steps == config.max_steps

    base = _build(shape).to(torch.bfloat16 if config.precision == "bf16-true" else torch.float32)
    after, num_selected, num_changed = weights_of(model), 0, 0
    for name, before in weights_of(base).items():
        weight, outside = after[name], torch.ones_like(before, dtype=torch.bool)
        if name in entries:
            layout, ids = LAYOUTS[entries[name].kind], entries[name].ids
            inside = layout.gather(outside, ids)
            layout.scatter(outside, ids, torch.zeros_like(inside))
            num_selected += inside.numel()
            num_changed += int((weight != before).sum())
        assert torch.equal(weight[outside].view(torch.uint8), before[outside].view(torch.uint8)), name
    assert num_selected == outcome.cost.trainable_parameters
    assert num_changed > 0 or config.learning_rate < 1e-3
