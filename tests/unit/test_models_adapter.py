import json

import pytest
import torch

from sparsegate.errors import ModelError
from sparsegate.models.adapter import CONFIG_FILE, check_adapter_folder, merge_adapter

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
TOKENS = torch.arange(2, 20)[None]


@pytest.fixture
def write_adapter(tmp_path, make_model):
    def write(settings=None):
        torch.manual_seed(0)
        chosen = settings or peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
        adapted = peft.get_peft_model(make_model("llama"), chosen).eval()
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if weight.requires_grad and "lora_A" not in name:
                    weight += 0.1 * torch.randn_like(weight)
        adapted.save_pretrained(tmp_path)
        with torch.inference_mode():
            return tmp_path, adapted(input_ids=TOKENS).logits

    return write


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
def test_a_merged_adapter_answers_as_peft_itself_does(write_adapter, make_model, kind):
    modules = {"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    settings = {
        "lora": peft.LoraConfig(r=2, **modules),
        "dora": peft.LoraConfig(r=2, use_dora=True, **modules),
        "ia3": peft.IA3Config(feedforward_modules=["down_proj"], **modules),
    }
    folder, expected = write_adapter(settings[kind])
    check_adapter_folder(folder)
    model = make_model("llama")
    plain = model(input_ids=TOKENS).logits
    merged = merge_adapter(model, folder)
    assert type(merged) is type(model)
    with torch.inference_mode():
        answers = merged(input_ids=TOKENS).logits
    torch.testing.assert_close(answers, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(answers, plain, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"peft_type": "NOVEL"}, "can't be merged"),
        ({"target_modules": ["q_proj"]}, "weights are missing or have no place"),
        ({"target_modules": ["q_proj", "k_proj", "down_proj"]}, "weights are missing or have no place"),
        ({"target_modules": ["nowhere"]}, "can't be merged"),
        ({"r": 4}, "can't be merged"),
    ],
)
def test_an_adapter_that_does_not_fit_is_never_loaded_in_part(write_adapter, make_model, change, problem):
    folder, _ = write_adapter()
    settings = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps({**settings, **change}))
    with pytest.raises(ModelError, match=problem):
        merge_adapter(make_model("llama"), folder)


def test_prompt_tuning_changes_no_weights_and_is_refused(tmp_path, make_model):
    tuned = peft.get_peft_model(
        make_model("llama"), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    tuned.save_pretrained(tmp_path)
    check_adapter_folder(tmp_path)
    with pytest.raises(ModelError, match="changes prompts and no weights"):
        merge_adapter(make_model("llama"), tmp_path)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "names no peft_type"),
        ([], "names no peft_type"),
        ({"peft_type": "LORA", "megatron_config": {"a": 1}}, "import a module by name"),
    ],
)
def test_a_folder_that_is_no_safe_adapter_is_refused_unread(tmp_path, settings, problem):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    (tmp_path / CONFIG_FILE).write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=problem):
        check_adapter_folder(tmp_path)
