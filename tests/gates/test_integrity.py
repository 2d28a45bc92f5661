import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from sparsegate.contracts import Verdict
from sparsegate.errors import MissingEvidenceError
from sparsegate.models.digest import model_digest
from sparsegate_gates.integrity import Integrity, IntegritySettings

ELEMENT, COLUMN = "model.a.weight", "model.b.weight"
PROBE = {"probe_sha256_in_memory": "a" * 64, "probe_sha256_reloaded": "a" * 64}


@pytest.fixture
def base(files):
    folder = files.folder / "base"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(4, 6, generator=generator) for name in (ELEMENT, COLUMN)}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    files.artifacts["base_model"] = folder
    files.json("reload", PROBE)
    return weights


def delta(files, base, *, change=None, metadata=None):
    """Write a sound delta; ``change`` edits its tensors and ``metadata`` its header."""
    ids, columns = torch.tensor([1, 5, 23], dtype=torch.int32), torch.tensor([0, 3], dtype=torch.int32)
    tensors = {
        f"{ELEMENT}::ids": ids,
        f"{ELEMENT}::old": base[ELEMENT].flatten()[ids],
        f"{ELEMENT}::new": base[ELEMENT].flatten()[ids] + 1,
        f"{COLUMN}::ids": columns,
        f"{COLUMN}::old": base[COLUMN][:, columns].contiguous(),
        f"{COLUMN}::new": base[COLUMN][:, columns] + 1,
    }
    if change is not None:
        change(tensors)
    supports = {ELEMENT: {"kind": "element", "shape": [4, 6]}, COLUMN: {"kind": "column", "shape": [4, 6]}}
    header = {
        "format": "sparsegate-delta-1",
        "base_digest": model_digest(files.artifacts["base_model"]),
        "supports": json.dumps(supports),
        "manifest": "{}",
        **(metadata or {}),
    }
    path = files.folder / "delta.safetensors"
    save_file(tensors, path, metadata=header)
    files.artifacts["delta"] = path
    return path


def run(files, **changes):
    return Integrity().run(files.context(IntegritySettings(reason="test", **changes)))


def test_a_sound_delta_passes(files, base):
    delta(files, base)
    result = run(files)
    assert result.verdict is Verdict.PASS
    assert result.details == {"parameters": 2, "entries": 11}


def test_the_file_that_the_delta_module_writes_passes(files, base):
    from sparsegate.sparse.delta import Delta, DeltaEntry, write_delta

    ids = torch.tensor([2, 7], dtype=torch.int32)
    old = base[ELEMENT].flatten()[ids]
    entry = DeltaEntry("element", (4, 6), ids, old, old * 2)
    path = files.folder / "written.safetensors"
    write_delta(Delta({ELEMENT: entry}, model_digest(files.artifacts["base_model"]), {"a": 1}), path)
    files.artifacts["delta"] = path
    assert run(files).verdict is Verdict.PASS


def test_a_base_stored_in_half_precision_is_compared_after_widening(files, base):
    weights = {name: weight.bfloat16() for name, weight in base.items()}
    save_file(weights, files.artifacts["base_model"] / "model.safetensors")
    delta(files, {name: weight.float() for name, weight in weights.items()})
    assert run(files).verdict is Verdict.PASS


def test_a_base_whose_names_lack_the_models_prefix_is_read(files, base):
    bare = {name.removeprefix("model."): weight for name, weight in base.items()}
    save_file(bare, files.artifacts["base_model"] / "model.safetensors")
    delta(files, base)
    assert run(files).verdict is Verdict.PASS


def _set(name, value):
    return lambda tensors: tensors.__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "question"),
    [
        (_set(f"{ELEMENT}::new", torch.tensor([1.0, float("nan"), 2.0])), "finite"),
        (_set(f"{ELEMENT}::new", torch.tensor([1.0, float("inf"), 2.0])), "finite"),
        (_set(f"{ELEMENT}::ids", torch.tensor([5, 1, 23], dtype=torch.int32)), "ids"),
        (_set(f"{ELEMENT}::ids", torch.tensor([5, 5, 23], dtype=torch.int32)), "ids"),
        (_set(f"{ELEMENT}::ids", torch.tensor([1, 5, 24], dtype=torch.int32)), "ids"),
        (_set(f"{ELEMENT}::ids", torch.tensor([-1, 5, 23], dtype=torch.int32)), "ids"),
        (_set(f"{ELEMENT}::ids", torch.tensor([1, 6, 23], dtype=torch.int32)), "old values"),
        (_set(f"{COLUMN}::old", torch.zeros(4, 2)), "old values"),
    ],
)
def test_a_wrong_tensor_fails_and_is_named(files, base, change, question):
    delta(files, base, change=change)
    result = run(files)
    assert result.verdict is Verdict.FAIL
    assert result.deciding is not None
    assert question in result.deciding.name
    assert "model." in result.reason


def test_negative_zero_is_not_zero(files, base):
    base[ELEMENT][0, 1] = 0.0
    save_file(base, files.artifacts["base_model"] / "model.safetensors")
    delta(files, base, change=lambda tensors: tensors[f"{ELEMENT}::old"].__setitem__(0, -0.0))
    assert run(files).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set(f"{ELEMENT}::new", torch.zeros(2)), "needs old and new of shape"),
        (_set(f"{ELEMENT}::new", torch.zeros(3, dtype=torch.float16)), "one floating-point type"),
        (_set(f"{ELEMENT}::ids", torch.tensor([1.0, 5.0, 23.0])), "whole numbers"),
        (_set("stowaway", torch.zeros(1)), "stowaway"),
        (lambda tensors: tensors.pop(f"{ELEMENT}::old"), "disagree"),
    ],
)
def test_tensors_that_do_not_fit_fail(files, base, change, message):
    delta(files, base, change=change)
    result = run(files)
    assert result.verdict is Verdict.FAIL
    assert message in result.reason


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "other"}, "not 'sparsegate-delta-1'"),
        ({"supports": "{}"}, "at least one parameter"),
        ({"supports": "no json"}, "no sound header"),
        ({"supports": "[1]"}, "no sound header"),
        ({"base_digest": "0" * 64}, "made for base 000000000000"),
        (
            {"supports": json.dumps({"model.c.weight": {"kind": "element", "shape": [4, 6]}})},
            "disagree",
        ),
    ],
)
def test_a_wrong_header_fails(files, base, metadata, message):
    delta(files, base, metadata=metadata)
    result = run(files)
    assert result.verdict is Verdict.FAIL
    assert message in result.reason


def test_a_parameter_that_the_base_lacks_fails(files, base):
    delta(files, base)
    save_file({ELEMENT: base[ELEMENT]}, files.artifacts["base_model"] / "model.safetensors")
    result = run(files)
    assert result.verdict is Verdict.FAIL
    assert "changes 'model.b.weight', which the base model does not have" in result.reason


def test_a_base_of_another_shape_fails(files, base):
    delta(files, base)
    save_file({ELEMENT: base[ELEMENT], COLUMN: torch.zeros(6, 4)}, files.artifacts["base_model"] / "model.safetensors")
    assert "has shape [6, 4]" in run(files).reason


def test_a_delta_that_changes_nothing_fails(files, base):
    def undo(tensors):
        for name in (ELEMENT, COLUMN):
            tensors[f"{name}::new"] = tensors[f"{name}::old"].clone()

    delta(files, base, change=undo)
    result = run(files)
    assert result.deciding is not None
    assert result.deciding.name == "entries changed"


@pytest.mark.parametrize("content", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00not json", pickle.dumps({"a": 1})])
def test_a_damaged_or_pickled_file_fails(files, base, content):
    path = delta(files, base)
    path.write_bytes(content)
    result = run(files)
    assert result.verdict is Verdict.FAIL
    assert "not a whole safetensors file" in result.reason


def test_a_truncated_file_fails(files, base):
    path = delta(files, base)
    path.write_bytes(path.read_bytes()[:-4])
    assert run(files).verdict is Verdict.FAIL


def test_only_safetensors_and_nothing_beside_it(files, base):
    path = delta(files, base)
    folder = files.folder / "folder"
    folder.mkdir()
    (folder / "delta.safetensors").write_bytes(path.read_bytes())
    files.artifacts["delta"] = folder
    assert run(files).verdict is Verdict.PASS
    (folder / "extra.py").write_text("print()")
    assert "nothing else" in run(files).reason
    files.artifacts["delta"] = path.rename(files.folder / "delta.pt")
    assert "must be a .safetensors file" in run(files).reason


def test_a_link_fails(files, base):
    path = delta(files, base)
    link = files.folder / "link.safetensors"
    link.symlink_to(path)
    files.artifacts["delta"] = link
    assert "not a link" in run(files).reason


def test_a_model_that_answers_otherwise_after_reload_fails(files, base):
    delta(files, base)
    files.json("reload", {**PROBE, "probe_sha256_reloaded": "b" * 64})
    assert run(files).verdict is Verdict.FAIL


def test_a_reload_that_was_not_tried_is_insufficient(files, base):
    delta(files, base)
    del files.artifacts["reload"]
    result = run(files)
    assert result.verdict is Verdict.INSUFFICIENT
    assert "reload" in result.reason


@pytest.mark.parametrize("value", [{}, [], {"probe_sha256_in_memory": None, "probe_sha256_reloaded": None}])
def test_a_reload_file_without_digests_is_an_error(files, base, value):
    delta(files, base)
    files.json("reload", value)
    assert run(files).verdict is Verdict.ERROR


@pytest.mark.parametrize("name", ["delta", "base_model"])
def test_a_missing_artifact_is_missing_evidence(files, base, name):
    delta(files, base)
    del files.artifacts[name]
    with pytest.raises(MissingEvidenceError, match=name):
        run(files)
