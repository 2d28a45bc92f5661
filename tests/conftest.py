"""Tiny models with random weights, and samples for them: what every test of training and scoring starts from."""

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from sparsegate.contracts import EncodedSample

NUM_TOKENS = 96
END_ID = 1
PAD_ID = 0
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
FAMILIES = ("llama", "qwen2", "gemma", "gpt2")


def build_model(family: str = "llama") -> PreTrainedModel:
    """Build a model of four layers and width 32, in evaluation mode; the same each time.

    ``llama`` has an output head of its own, ``qwen2`` biases and a tied head, ``gemma`` a tied head and scaled
    embeddings; these have fewer key heads than query heads. ``gpt2`` has weights stored as (in, out), and a tied head.
    """
    torch.manual_seed(0)
    sizes = {
        "vocab_size": NUM_TOKENS,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,  # large enough that answers differ from prompt to prompt
        "bos_token_id": None,
        "eos_token_id": END_ID,
        "pad_token_id": PAD_ID,
    }
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False))
    elif family == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**sizes, tie_word_embeddings=True))
    elif family == "gpt2":
        no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        shape = {"n_embd": 32, "n_inner": 48, "n_layer": 4, "n_head": 4, "n_positions": 128}
        shared = {name: sizes[name] for name in ("vocab_size", "initializer_range", *_TOKEN_IDS)}
        model = GPT2LMHeadModel(GPT2Config(**shared, **shape, **no_dropout))
    else:
        model = GemmaForCausalLM(GemmaConfig(**sizes, head_dim=8, tie_word_embeddings=True))
    return model.eval()


@pytest.fixture
def tiny_model() -> PreTrainedModel:
    return build_model()


@pytest.fixture(scope="session")
def make_model() -> Callable[[str], PreTrainedModel]:
    return build_model


@pytest.fixture(params=FAMILIES)
def any_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build_model(request.param)


@pytest.fixture
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose words ``w2`` to ``w95`` are the tiny models' tokens."""
    words = {"<pad>": PAD_ID, "<end>": END_ID, **{f"w{token}": token for token in range(2, NUM_TOKENS)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")


@pytest.fixture(scope="session")
def make_samples() -> Callable[..., list[EncodedSample]]:
    return build_samples


def build_samples(count: int, *, prefix: str = "s", seed: int = 0, longest: int = 12) -> list[EncodedSample]:
    """Return samples of different lengths whose response follows from the first token of the prompt."""
    draw = random.Random(seed)
    samples = []
    for number in range(count):
        prompt = [draw.randrange(2, NUM_TOKENS) for _ in range(draw.randint(2, longest))]
        response = (2 + prompt[0] % 4, 6 + prompt[0] % 4, END_ID)
        samples.append(EncodedSample(f"{prefix}{number}", tuple(prompt), response[draw.randint(0, 1) :]))
    return samples


@pytest.fixture(scope="session")
def weights_of() -> Callable[..., dict[str, torch.Tensor]]:
    return copy_weights


def copy_weights(model: torch.nn.Module, names: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
    """Return copies of a model's weights by their names in the plain model."""
    weights = {
        name.replace(".linear.", "."): weight.detach().clone()
        for name, weight in model.named_parameters()
        if not name.endswith("support.values")
    }
    return {name: weights[name] for name in names} if names else weights


class FlopCounter(TorchDispatchMode):
    """Counts as torch's FlopCounterMode does, which can't follow a graph inside a backward pass."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.count += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


@pytest.fixture
def count_flops() -> type[FlopCounter]:
    return FlopCounter
