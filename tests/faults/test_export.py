"""The verb export: from files, runs and versions to other programs' formats, and what it refuses."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from byte_model import write_byte_model
from transformers import AutoModelForCausalLM

from sparsegate.config import ModelConfig, RunConfig
from sparsegate.files import write_json
from sparsegate.models import load, resolve
from sparsegate.sparse.delta import Delta, DeltaEntry, apply_delta, read_delta, write_delta
from sparsegate.sparse.peft_import import from_peft

WEIGHT = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    write_byte_model(folder, num_layers=1)
    return resolve(str(folder))


@pytest.fixture
def make_delta(base):
    """Makes a delta of the base that adds 1 to columns of one weight, or to the first entries."""

    def make(path, *ids, kind="column", base_digest=base.digest):
        weight = load(base.folder)[0].get_parameter(WEIGHT).detach()
        old = (weight[:, list(ids)] if kind == "column" else weight.flatten()[list(ids)]).clone()
        manifest = {"plan": {"first_layer": 0, "density": 0.1}}
        entry = DeltaEntry(kind, tuple(weight.shape), torch.tensor(ids, dtype=torch.int32), old, old + 1)
        write_delta(Delta({WEIGHT: entry}, base_digest, manifest), Path(path))
        return str(path)

    return make


@pytest.fixture
def run_folder(base, make_delta, tmp_path):
    """The folder of a run, as far as an export reads it."""
    make_delta(tmp_path / "runs" / "a" / "train" / "delta.safetensors", 1, 3)
    write_json(tmp_path / "runs" / "a" / "config.json", asdict(RunConfig(model=ModelConfig(source=str(base.folder)))))
    return tmp_path / "runs" / "a"


def weights_of(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def test_a_run_becomes_a_whole_model_on_the_base_of_its_configuration(registry, base, run_folder):
    code, out, err = registry.run("export", str(run_folder), "merged", "--format", "merged", "--json")
    assert code == 0, err
    model, _ = load(base.folder)
    apply_delta(model, read_delta(run_folder / "train" / "delta.safetensors"))
    found = weights_of("merged")
    assert all(torch.equal(found[name], weight) for name, weight in model.state_dict().items())
    assert json.loads(out) == {
        "to": "merged",
        "format": "merged",
        "sources": [str(run_folder)],
        "base_digest": base.digest,
        "bytes": sum(path.stat().st_size for path in Path("merged").iterdir()),
    }


@pytest.mark.parametrize("kind", ["lora", "shira"])
def test_the_delta_file_of_a_run_becomes_an_adapter_that_names_the_base_folder(kind, registry, base, run_folder):
    source = run_folder / "train" / "delta.safetensors"
    code, out, err = registry.run("export", str(source), kind, "--format", kind)
    assert (code, err) == (0, "")
    assert out.startswith(f"{kind}: {kind} of {source}, 0.0")
    config = json.loads(Path(kind, "adapter_config.json").read_text())
    assert (config["peft_type"], config["base_model_name_or_path"]) == (kind.upper(), str(base.folder))
    back = from_peft(Path(kind), load(base.folder)[0], base_digest=base.digest).entries[WEIGHT]
    assert back.new.numel() == read_delta(source).entries[WEIGHT].new.numel()


def test_an_adapter_for_a_model_of_the_hub_names_it_as_the_hub_does(registry, base, make_delta, monkeypatch):
    monkeypatch.setattr("sparsegate.models.hub.fetch", lambda location, **rest: (base.folder, "0123abc"))
    delta = make_delta("delta.safetensors", 1)
    assert registry.run("export", delta, "out", "--format", "lora", "--base", "hf:org/name@main")[0] == 0
    assert json.loads(Path("out", "adapter_config.json").read_text())["base_model_name_or_path"] == "org/name"


def test_a_verified_version_is_exported_and_a_changed_one_is_not(registry, base, make_delta, monkeypatch):
    made = registry.make_run

    def make_run(*given):
        run = replace(made(*given), base=base)
        make_delta(run.delta, 2)
        return run

    monkeypatch.setattr(registry, "make_run", make_run)
    registry.add("k1")
    code, _, err = registry.run("export", "models:/desk/1", "out", "--format", "merged")
    assert code == 0, err
    change = weights_of("out")[WEIGHT] - weights_of(base.folder)[WEIGHT]
    assert torch.nonzero(change.any(dim=0)).flatten().tolist() == [2]

    make_delta(registry.package(1) / "delta.safetensors", 3)
    code, _, err = registry.run("export", "models:/desk/1", "again", "--format", "merged")
    assert code == 10
    assert "models:/desk/1 can't be exported: delta.safetensors is missing or is not the file that was judged" in err
    assert not Path("again").exists()
    code, _, err = registry.run("export", "models:/desk@live", "again", "--format", "merged")
    assert code == 2
    assert "desk has no alias 'live'" in err


def test_several_deltas_become_one_file_by_the_rule_for_conflicts(registry, make_delta):
    first, second = make_delta("a.safetensors", 1, 2), make_delta("b.safetensors", 2, 5)
    command = ("export", first, second, "sum.safetensors", "--format", "delta")
    code, _, err = registry.run(*command)
    assert code == 2
    assert "1 columns are changed by more than one delta" in err
    assert not Path("sum.safetensors").exists()
    assert registry.run(*command, "--conflict", "sum")[0] == 0
    entry = read_delta(Path("sum.safetensors")).entries[WEIGHT]
    assert entry.ids.tolist() == [1, 2, 5]
    torch.testing.assert_close(entry.new - entry.old, torch.tensor([1.0, 2.0, 1.0]).expand(len(entry.old), 3))
    code, _, err = registry.run(*command, "--conflict", "sum")
    assert code == 2
    assert "sum.safetensors exists; choose a new file" in err


def test_what_can_not_be_exported_is_named_with_exit_code_2_and_nothing_is_written(registry, base, make_delta):
    columns, entries = make_delta("columns.safetensors", 1), make_delta("entries.safetensors", 1, kind="element")
    stranger = make_delta("stranger.safetensors", 1, base_digest="c" * 64)
    Path("used").mkdir()
    Path("used", "mine").write_text("kept")
    before = sorted(Path().rglob("*"))
    based = ("--base", str(base.folder))
    refusals = {
        (columns, "out", "--format", "lora"): f"of digest {base.digest[:12]} with --base",
        (entries, "out", "--format", "lora", *based): "has a support of kind 'element', which is no LoRA",
        (stranger, "out", "--format", "merged", *based): "the delta belongs to the base cccccccccccc, this is",
        (columns, stranger, "out", "--format", "delta"): "the deltas belong to 2 different bases",
        (columns, "used", "--format", "lora", *based): "used exists and is not empty; choose a new folder",
        (columns, columns, "--format", "delta"): "columns.safetensors exists; choose a new file",
        ("missing", "out", "--format", "delta"): "missing does not exist; give a delta file or the folder of a run",
        ("models:/desk", "out", "--format", "delta"): "'models:/desk' names no version",
        (columns, "--format", "delta"): "the following arguments are required: TO",
        (columns, "out", "--format", "gguf"): "invalid choice: 'gguf'",
    }
    for arguments, message in refusals.items():
        code, out, err = registry.run("export", *arguments)
        assert (code, out) == (2, "")
        assert message in err
    assert sorted(Path().rglob("*")) == before
