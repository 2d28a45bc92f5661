import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sparsegate.config import EMBEDDED_MODEL
from sparsegate.contracts import Sample
from sparsegate.data import ChatTemplate
from sparsegate.errors import ModelError
from sparsegate.models import load, model_digest, resolve


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    words = {word: number for number, word in enumerate(["<unk>", "<end>", "hello", "world"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=1,
    )
    folder = tmp_path / "model"
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>").save_pretrained(folder)
    return folder


def test_a_folder_is_resolved_to_its_absolute_path_and_digest(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    base = resolve("model")
    assert base.folder == folder.resolve()
    assert base.digest == model_digest(folder)


def test_a_loaded_model_is_quiet_in_eval_mode_and_can_pad(folder, capfd):
    model, tokenizer = load(folder)
    assert not model.training
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert tokenizer.pad_token == "<end>"
    assert capfd.readouterr() == ("", "")


def test_training_a_loaded_model_in_place_does_not_change_its_file(folder):
    before = model_digest(folder)
    model, _ = load(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert model_digest(folder) == before


def test_the_digest_changes_with_weights_and_tokenizer_but_not_with_other_files(folder):
    before = model_digest(folder)
    (folder / "README.md").write_text("text")
    assert model_digest(folder) == before
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 7}))
    after_tokenizer = model_digest(folder)
    assert after_tokenizer != before
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert model_digest(folder) != after_tokenizer


def test_missing_weights_are_refused_instead_of_filled_with_random_numbers(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights .* first model\.layers\.0\.mlp\.up_proj\.weight"):
        load(folder)


def test_a_truncated_weight_file_is_one_clear_error(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match="can't be loaded"):
        load(folder)


def test_an_unknown_dtype_lists_the_choices(folder):
    with pytest.raises(ModelError, match="did you mean 'float16'"):
        load(folder, dtype="flaot16")


def test_a_folder_with_only_pickles_is_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only pickled weights"):
        resolve(str(folder))


def test_an_adapter_folder_says_that_it_is_one(folder):
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(ModelError, match="PEFT adapter"):
        resolve(str(folder))


def test_a_missing_shard_is_named(folder):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"lacks 1 of 2 weight files, first model-00002\.safetensors"):
        resolve(str(folder))


@pytest.mark.real_model
def test_the_embedded_model_answers_a_question_in_its_chat_format():
    model, tokenizer = load(resolve(EMBEDDED_MODEL).folder)
    template = ChatTemplate(tokenizer, system_prompt=None, max_tokens=128)
    encoded = template.encode(Sample("1", "What is the capital of France?", "Paris"))
    assert tokenizer.decode(encoded.prompt_ids) == (
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert tokenizer.decode(encoded.response_ids) == "Paris<|im_end|>"
    assert model.generation_config.eos_token_id == template.turn_end_id
    prompt = torch.tensor([encoded.prompt_ids])
    answer = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False)
    text = tokenizer.decode(answer[0, prompt.shape[1] :])
    assert "Paris" in text
    assert text.endswith("<|im_end|>")
