import importlib.util
import json
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparsegate.contracts import SupportKind
from sparsegate.errors import DeltaError, UsageError
from sparsegate.sparse import layouts
from sparsegate.sparse.compose import as_elements
from sparsegate.sparse.delta import DeltaEntry, apply_delta, extract_delta, revert_delta
from sparsegate.sparse.export import merged, to_peft_lora, to_peft_shira
from sparsegate.sparse.layers import sparse_layers, uninstall
from sparsegate.sparse.peft_import import from_peft
from sparsegate.sparse.selection import select
from sparsegate.sparse.selectors import make_selector
from sparsegate.sparse.targets import find_targets

BASE = "b" * 64
KINDS = get_args(SupportKind)
LORA_KINDS = [kind for kind in KINDS if kind in ("column", "row")]
IDS = torch.arange(2, 26).view(2, 12)

needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="peft is not installed; it is needed to open the adapters"
)
# both come from inside peft 0.21 with the newest torch and transformers
peft_warnings = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning",
    "ignore:Sparse invariant checks are implicitly disabled:UserWarning",
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """The tiny models' sides are multiples of 4."""
    monkeypatch.setattr(layouts, "BLOCK", 4)


def trained(model, kind, *, density=0.1, step=0.1, embeddings=False, keep=lambda target: True):
    """Train a model for one random step; return its delta and logits and leave it untouched."""
    model.requires_grad_(False)
    targets = [target for target in find_targets(model, embeddings=embeddings) if keep(target)]
    select(model, targets, make_selector("random"), {}, kind=kind, density=density, seed=0)
    draw = torch.Generator().manual_seed(1)
    for layer in sparse_layers(model).values():
        layer.support.values.data += step * torch.randn(layer.support.values.shape, generator=draw)
        layer.commit()
    delta = extract_delta(model, base_digest=BASE, manifest={"training": {"density": density}})
    uninstall(model)
    logits = logits_of(model)
    revert_delta(model, delta)
    return delta, logits


@torch.no_grad()
def logits_of(model):
    return model(IDS).logits


def opened_by_peft(model, folder):
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder)


def assert_same_change(found, expected):
    assert found.base_digest == expected.base_digest
    assert found.manifest == expected.manifest
    assert found.entries.keys() == expected.entries.keys()
    for name, entry in expected.entries.items():
        ours, theirs = as_elements(found.entries[name]), as_elements(entry)
        assert ours.shape == theirs.shape
        for part in ("ids", "old", "new"):
            assert torch.equal(getattr(ours, part), getattr(theirs, part))


# --- PEFT ---------------------------------------------------------------------------------------


@needs_peft
@peft_warnings
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma"])
def test_peft_opens_the_shira_export_with_the_trained_logits(family, kind, make_model, tmp_path):
    model = make_model(family)
    before = logits_of(model)
    delta, logits = trained(model, kind)
    assert float((logits - before).abs().max()) > 0.1
    to_peft_shira(delta, tmp_path / "shira", base_source="base")
    adapter = opened_by_peft(model, tmp_path / "shira")
    torch.testing.assert_close(logits_of(adapter), logits, rtol=0, atol=1e-5)


@needs_peft
@peft_warnings
@pytest.mark.parametrize("kind", LORA_KINDS)
def test_peft_opens_the_lora_export_with_the_trained_logits(kind, any_model, tmp_path):
    before = logits_of(any_model)
    delta, logits = trained(any_model, kind)
    assert float((logits - before).abs().max()) > 0.1
    to_peft_lora(delta, tmp_path / "lora", base_source="base")
    adapter = opened_by_peft(any_model, tmp_path / "lora")
    torch.testing.assert_close(logits_of(adapter), logits, rtol=1e-4, atol=1e-4)


@needs_peft
@peft_warnings
@pytest.mark.parametrize("export", [to_peft_shira, to_peft_lora])
def test_peft_adapts_the_trained_weights_and_no_others(export, tiny_model, tmp_path):
    delta, logits = trained(tiny_model, "column", keep=lambda target: target.layer == 2 or "up_proj" in target.name)
    export(delta, tmp_path / "adapter", base_source="base")
    adapter = opened_by_peft(tiny_model, tmp_path / "adapter")
    adapted = {
        name.removeprefix("base_model.model.") for name, m in adapter.named_modules() if hasattr(m, "base_layer")
    }
    assert adapted == {name.removesuffix(".weight") for name in delta.entries}
    torch.testing.assert_close(logits_of(adapter), logits, rtol=1e-4, atol=1e-4)


@needs_peft
@peft_warnings
def test_every_module_of_the_lora_export_has_its_own_rank_and_a_scaling_of_one(tiny_model, tmp_path):
    delta, _ = trained(tiny_model, "column")
    to_peft_lora(delta, tmp_path / "lora", base_source="base")
    adapter = opened_by_peft(tiny_model, tmp_path / "lora")
    ranks = set()
    for name, module in adapter.named_modules():
        if hasattr(module, "base_layer"):
            entry = delta.entries[f"{name.removeprefix('base_model.model.')}.weight"]
            assert module.r["default"] == len(entry.ids)
            assert module.scaling["default"] == 1.0
            ranks.add(module.r["default"])
    assert len(ranks) == 2


@needs_peft
@peft_warnings
def test_peft_merges_the_lora_export_into_the_trained_weights(tiny_model, tmp_path):
    delta, _ = trained(tiny_model, "column")
    to_peft_lora(delta, tmp_path / "lora", base_source="base")
    weights = dict(opened_by_peft(tiny_model, tmp_path / "lora").merge_and_unload().named_parameters())
    for name, entry in delta.entries.items():
        columns = weights[name].detach()[:, entry.ids.long()]
        torch.testing.assert_close(columns, entry.new, rtol=0, atol=1e-6)


@pytest.mark.parametrize("export", [to_peft_shira, to_peft_lora])
def test_an_adapter_names_its_base_and_holds_safetensors_only(export, tiny_model, tmp_path):
    delta, _ = trained(tiny_model, "column")
    export(delta, tmp_path / "adapter", base_source="hf:org/name")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "hf:org/name"
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "sparsegate.safetensors",
    ]


def test_elements_are_refused_by_the_lora_export_and_nothing_is_written(tiny_model, tmp_path):
    delta, _ = trained(tiny_model, "element")
    with pytest.raises(DeltaError, match="kind 'element', which is no LoRA; export it to SHiRA"):
        to_peft_lora(delta, tmp_path / "lora", base_source="base")
    assert list(tmp_path.iterdir()) == []


def test_conv1d_is_refused_by_the_shira_export_which_peft_could_not_open(make_model, tmp_path):
    delta, _ = trained(make_model("gpt2"), "column")
    with pytest.raises(DeltaError, match=r"PEFT's SHiRA takes weights of linear maps, transformer\.h\.0.*'conv1d'"):
        to_peft_shira(delta, tmp_path / "shira", base_source="base")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("export", [to_peft_shira, to_peft_lora])
def test_embeddings_are_refused_by_peft_exports(export, make_model, tmp_path):
    delta, _ = trained(make_model("qwen2"), "column", embeddings=True)
    with pytest.raises(DeltaError, match=r"model\.embed_tokens\.weight is of kind 'embedding'; export merged weights"):
        export(delta, tmp_path / "adapter", base_source="base")
    assert list(tmp_path.iterdir()) == []


def test_a_density_beyond_shira_is_refused(tiny_model, tmp_path):
    delta, _ = trained(tiny_model, "column", density=0.9)
    with pytest.raises(DeltaError, match=r"has fewer; export a LoRA or merged weights"):
        to_peft_shira(delta, tmp_path / "shira", base_source="base")


@pytest.mark.parametrize("export", [to_peft_shira, to_peft_lora])
def test_an_export_never_overwrites(export, tiny_model, tmp_path):
    delta, _ = trained(tiny_model, "column")
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(UsageError, match="exists and is not empty; choose a new folder"):
        export(delta, tmp_path, base_source="base")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


# --- and back -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_shira_export_comes_back_bit_for_bit(kind, dtype, tiny_model, tmp_path):
    tiny_model.to(dtype)
    delta, logits = trained(tiny_model, kind)
    to_peft_shira(delta, tmp_path / "shira", base_source="base")
    back = from_peft(tmp_path / "shira", tiny_model, base_digest=BASE)
    assert_same_change(back, delta)
    apply_delta(tiny_model, back)
    assert torch.equal(logits_of(tiny_model), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", LORA_KINDS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_lora_export_comes_back_as_the_same_support_bit_for_bit(family, kind, dtype, make_model, tmp_path):
    model = make_model(family).to(dtype)
    delta, _ = trained(model, kind)
    to_peft_lora(delta, tmp_path / "lora", base_source="base")
    back = from_peft(tmp_path / "lora", model, base_digest=BASE)
    assert_same_change(back, delta)
    for name, entry in delta.entries.items():
        assert (back.entries[name].kind, back.entries[name].map_kind) == (entry.kind, entry.map_kind)


def test_values_that_a_difference_can_not_hold_come_back_too(tiny_model, tmp_path):
    delta, _ = trained(tiny_model, "element")
    name, entry = next(iter(delta.entries.items()))
    new = entry.new.clone()
    new[0], new[1] = 1e-30, -0.0  # both vanish beside the old value
    changed = {name: DeltaEntry("element", entry.shape, entry.ids, entry.old, new)}
    delta = type(delta)(changed, BASE, delta.manifest)
    to_peft_shira(delta, tmp_path / "shira", base_source="base")
    found = from_peft(tmp_path / "shira", tiny_model, base_digest=BASE).entries[name].new
    assert torch.equal(found.view(torch.int32), new.view(torch.int32))


def test_an_adapter_of_another_base_or_precision_is_refused(tiny_model, tmp_path):
    delta, _ = trained(tiny_model, "column")
    to_peft_lora(delta, tmp_path / "lora", base_source="base")
    with pytest.raises(DeltaError, match="belongs to the base bbbbbbbbbbbb, this is cccccccccccc"):
        from_peft(tmp_path / "lora", tiny_model, base_digest="c" * 64)
    with pytest.raises(DeltaError, match=r"no model\.layers\.0.*\.weight of torch\.float32"):
        from_peft(tmp_path / "lora", tiny_model.bfloat16(), base_digest=BASE)


def test_an_adapter_that_was_changed_or_is_not_ours_is_refused(tiny_model, tmp_path):
    delta, _ = trained(tiny_model, "column")
    to_peft_lora(delta, tmp_path / "lora", base_source="base")
    weights = tmp_path / "lora" / "adapter_model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(DeltaError, match="was changed since it was exported"):
        from_peft(tmp_path / "lora", tiny_model, base_digest=BASE)
    exact = tmp_path / "lora" / "sparsegate.safetensors"
    exact.write_bytes(exact.read_bytes()[:40])
    with pytest.raises(DeltaError, match=r"sparsegate\.safetensors is damaged"):
        from_peft(tmp_path / "lora", tiny_model, base_digest=BASE)
    save_file({"x": torch.ones(1)}, exact)
    with pytest.raises(DeltaError, match=r"is not of format sparsegate-peft-1, but unmarked"):
        from_peft(tmp_path / "lora", tiny_model, base_digest=BASE)
    exact.unlink()
    with pytest.raises(DeltaError, match="only adapters exported by sparsegate can be read back"):
        from_peft(tmp_path / "lora", tiny_model, base_digest=BASE)


# --- merged weights -----------------------------------------------------------------------------


@pytest.fixture
def base_folder(any_model, tiny_tokenizer, tmp_path):
    folder = tmp_path / "base"
    any_model.save_pretrained(folder)
    tiny_tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tiny_tokenizer.save_pretrained(folder)
    (folder / "LICENSE").write_text("free")
    (folder / "training_args.bin").write_bytes(b"pickled")
    return folder


@pytest.mark.parametrize("embeddings", [False, True])
def test_the_merged_folder_is_a_plain_model_with_the_trained_logits(
    embeddings, any_model, base_folder, tmp_path, weights_of
):
    before = weights_of(any_model)
    delta, logits = trained(any_model, "column", embeddings=embeddings)
    merged(base_folder, delta, tmp_path / "merged", model=any_model, base_digest=BASE)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert torch.equal(logits_of(plain), logits)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "w2 w3"}], tokenize=False) == "w2 w3"
    assert (tmp_path / "merged" / "LICENSE").read_text() == "free"
    assert not (tmp_path / "merged" / "training_args.bin").exists()
    for name, weight in any_model.named_parameters():
        assert torch.equal(weight, before[name])


def test_the_merged_folder_is_not_written_for_another_base(tiny_model, tmp_path):
    delta, _ = trained(tiny_model, "column")
    (tmp_path / "base").mkdir()
    with pytest.raises(DeltaError, match="belongs to the base"):
        merged(tmp_path / "base", delta, tmp_path / "merged", model=tiny_model, base_digest="c" * 64)
    with torch.no_grad():
        for weight in tiny_model.parameters():
            weight += 1
    with pytest.raises(DeltaError, match="does not hold the delta's old values"):
        merged(tmp_path / "base", delta, tmp_path / "merged", model=tiny_model, base_digest=BASE)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
