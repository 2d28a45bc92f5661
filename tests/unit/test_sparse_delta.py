from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sparsegate.errors import DeltaError
from sparsegate.sparse.delta import apply_delta, extract_delta, read_delta, revert_delta, write_delta
from sparsegate.sparse.layers import sparse_layers, uninstall
from sparsegate.sparse.selection import select
from sparsegate.sparse.selectors import make_selector
from sparsegate.sparse.targets import find_targets

KINDS = ("element", "column")


def _trained(model, kind):
    """Move a model's supports as training would, and return its delta; the model is trained and plain then."""
    model.requires_grad_(False)
    select(model, find_targets(model, first_layer=2), make_selector("random"), {}, kind=kind, density=0.1, seed=0)
    draw = torch.Generator().manual_seed(1)
    for layer in sparse_layers(model).values():
        layer.support.values.data += 0.01 * torch.randn(layer.support.values.shape, generator=draw)
        layer.commit()
    delta = extract_delta(model, base_digest="abc", manifest={"seed": 0, "name": "größer"})
    uninstall(model)
    return delta


@pytest.fixture(params=KINDS)
def delta(request, make_model):
    return _trained(make_model("llama"), request.param)


@pytest.fixture
def first(delta):
    return next(iter(delta.entries))


def _change(delta, name, **parts):
    return replace(delta, entries={**delta.entries, name: replace(delta.entries[name], **parts)})


def _equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_equal_deltas_are_equal_files(delta, tmp_path):
    for number in range(8):  # by chance, two orders of the metadata can be the same
        write_delta(delta, tmp_path / f"{number}.safetensors")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_a_delta_file_reads_back_as_it_was_written(delta, tmp_path):
    write_delta(delta, tmp_path / "delta.safetensors")
    again = read_delta(tmp_path / "delta.safetensors")
    assert (again.base_digest, again.manifest) == (delta.base_digest, delta.manifest)
    assert again.entries.keys() == delta.entries.keys()
    for name, entry in delta.entries.items():
        read = again.entries[name]
        assert (read.kind, read.shape) == (entry.kind, entry.shape)
        for part in ("ids", "old", "new"):
            assert getattr(read, part).dtype == getattr(entry, part).dtype
            assert torch.equal(getattr(read, part), getattr(entry, part))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_apply_gives_the_trained_model_and_revert_the_base_bit_for_bit(
    make_model, weights_of, tmp_path, family, kind, dtype
):
    trained = make_model(family).to(dtype)
    write_delta(_trained(trained, kind), tmp_path / "delta.safetensors")
    delta = read_delta(tmp_path / "delta.safetensors")
    model = make_model(family).to(dtype)
    base = weights_of(model)
    apply_delta(model, delta)
    assert _equal(weights_of(model), weights_of(trained))
    assert not _equal(weights_of(model), base)
    revert_delta(model, delta)
    assert _equal(weights_of(model), base)


def test_a_delta_is_small_against_the_model(delta, tiny_model, tmp_path):
    write_delta(delta, tmp_path / "delta.safetensors")
    # half the layers, a tenth of their weights, old and new values, and for elements their places
    assert (tmp_path / "delta.safetensors").stat().st_size < 0.25 * 4 * tiny_model.num_parameters()


def _assert_refused_and_untouched(model, delta, weights_of, message, swap=apply_delta):
    before = weights_of(model)
    with pytest.raises(DeltaError, match=message):
        swap(model, delta)
    assert _equal(weights_of(model), before)


def test_another_base_is_refused_and_left_as_it_was(delta, tiny_model, weights_of):
    # the last weight differs in one trained entry: all others could be written before it is looked at
    last = list(delta.entries)[-1]
    entry = delta.entries[last]
    row, column = (int(entry.ids[0]) // entry.shape[1], int(entry.ids[0]) % entry.shape[1])
    if entry.kind == "column":
        row, column = 3, int(entry.ids[0])
    tiny_model.get_parameter(last).data[row, column] += 1e-3
    _assert_refused_and_untouched(tiny_model, delta, weights_of, f"{last} does not hold the delta's old values")


def test_applying_twice_or_reverting_what_was_not_applied_is_refused(delta, tiny_model, weights_of):
    _assert_refused_and_untouched(tiny_model, delta, weights_of, "does not hold the delta's new values", revert_delta)
    apply_delta(tiny_model, delta)
    _assert_refused_and_untouched(tiny_model, delta, weights_of, "does not hold the delta's old values")


def test_a_model_of_another_architecture_is_refused_and_left_as_it_was(delta, make_model, weights_of):
    model = make_model("gemma")
    model.model.layers = model.model.layers[:3]
    _assert_refused_and_untouched(model, delta, weights_of, "it belongs to another base")


def test_a_base_in_another_precision_is_refused_and_left_as_it_was(delta, make_model, weights_of):
    model = make_model("llama").to(torch.bfloat16)
    _assert_refused_and_untouched(model, delta, weights_of, "does not hold the delta's old values")


def test_training_that_ended_in_nan_gives_no_delta(tiny_model):
    tiny_model.requires_grad_(False)
    select(tiny_model, find_targets(tiny_model), make_selector("random"), {}, kind="column", density=0.1, seed=0)
    layer = sparse_layers(tiny_model)["model.layers.1.mlp.up_proj"]
    layer.support.values.data[0, 0] = float("nan")
    layer.commit()
    with pytest.raises(DeltaError, match=r"model.layers.1.mlp.up_proj.weight holds NaN or infinity"):
        extract_delta(tiny_model, base_digest="abc", manifest={})


def test_a_model_without_sparse_layers_has_no_delta(tiny_model):
    with pytest.raises(DeltaError, match="no sparse layers; train it first"):
        extract_delta(tiny_model, base_digest="abc", manifest={})


# --- damaged files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda e: {"new": torch.full_like(e.new, float("nan"))}, "new values must be finite"),
        (lambda e: {"new": torch.full_like(e.new, float("inf"))}, "new values must be finite"),
        (lambda e: {"new": e.new.to(torch.bfloat16)}, "of the old values' dtype"),
        (lambda e: {"ids": e.ids.flip(0)}, "ids must be ascending"),
        (lambda e: {"ids": torch.cat([e.ids[:1], e.ids[:-1]])}, "ids must be ascending"),
        (lambda e: {"ids": e.ids - e.ids[0] - 1}, "ids must be ascending and in"),
        (lambda e: {"ids": e.ids + e.shape[0] * e.shape[1]}, "ids must be ascending and in"),
        (lambda e: {"ids": e.ids[:-1]}, "do not fit each other"),
        (lambda e: {"ids": e.ids[None]}, "do not fit each other"),
        (lambda e: {"ids": e.ids.float()}, "ids must be whole numbers"),
        (lambda e: {"new": e.new[:-1]}, "do not fit each other"),
        (lambda e: {"shape": (1, 1)}, r"do not fit each other|ids must be ascending and in \[0, 1\)"),
        (lambda e: {"shape": (32,)}, "damaged"),
        (lambda e: {"kind": "diagonal"}, "unknown support kind 'diagonal'"),
        (lambda e: {"map_kind": "conv3d"}, "unknown kind of map 'conv3d'"),
    ],
)
def test_a_delta_that_contradicts_itself_is_refused(delta, first, tmp_path, damage, message):
    path = tmp_path / "delta.safetensors"
    write_delta(_change(delta, first, **damage(delta.entries[first])), path)
    with pytest.raises(DeltaError, match=message):
        read_delta(path)


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.999])
def test_a_cut_file_is_refused(delta, tmp_path, kept):
    path = tmp_path / "delta.safetensors"
    write_delta(delta, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(len(whole) * kept)])
    with pytest.raises(DeltaError, match="is damaged"):
        read_delta(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DeltaError, match=r"none.safetensors does not exist"):
        read_delta(tmp_path / "none.safetensors")


def test_a_safetensors_file_of_something_else_is_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(DeltaError, match="is not a delta file of format sparsegate-delta-1, but unmarked"):
        read_delta(tmp_path / "model.safetensors")


@pytest.mark.parametrize("field", ["base_digest", "supports", "manifest"])
@pytest.mark.parametrize("value", [None, "[]", "not json"])
def test_metadata_that_is_missing_or_wrong_is_refused(delta, tmp_path, field, value):
    path = tmp_path / "delta.safetensors"
    write_delta(delta, path)
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if value is None:
        del metadata[field]
    else:
        metadata[field] = value
    save_file(tensors, path, metadata=metadata)
    if field == "base_digest" and value is not None:
        assert read_delta(path).base_digest == value
        return
    with pytest.raises(DeltaError, match="is damaged"):
        read_delta(path)


def test_a_delta_from_before_other_maps_could_be_trained_is_one_of_linear_maps(delta, tmp_path):
    path = tmp_path / "delta.safetensors"
    write_delta(delta, path)
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata["supports"] = metadata["supports"].replace('"map":"linear",', "")
    assert "map" not in metadata["supports"]
    save_file(tensors, path, metadata=metadata)
    assert {entry.map_kind for entry in read_delta(path).entries.values()} == {"linear"}


def test_a_failed_write_leaves_the_old_file(delta, tmp_path):
    path = tmp_path / "delta.safetensors"
    write_delta(delta, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="Out of range float values"):
        write_delta(replace(delta, manifest={"loss": float("nan")}), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
