"""Deltas for other programs: merged weights, and adapter folders that PEFT and LoRA servers open.

An adapter holds differences, which do not give every trained value back bit for bit. ``sparsegate.safetensors`` beside
it holds the values that they miss, so that :func:`sparsegate.sparse.peft_import.from_peft` is exact; other programs
ignore it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from sparsegate.contracts import JSON, canonical_json
from sparsegate.errors import DeltaError, UsageError
from sparsegate.files import sha256_file, write_json
from sparsegate.sparse.compose import as_elements
from sparsegate.sparse.delta import Delta, DeltaEntry, apply_delta, revert_delta
from sparsegate.sparse.targets import MapKind

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER_FILE = "adapter_model.safetensors"
_CONFIG_FILE = "adapter_config.json"
EXACT_FILE = "sparsegate.safetensors"
EXACT_FORMAT = "sparsegate-peft-1"
PEFT_PREFIX = "base_model.model."
_COPIED = frozenset({".json", ".txt", ".model", ".jinja", ".py", ".md"})
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


# --- merged weights -----------------------------------------------------------------------------


def merged(model_folder: Path, delta: Delta, output_dir: Path, *, model: PreTrainedModel, base_digest: str) -> None:
    """Write a plain Hugging Face model folder with the delta applied: weights, configuration, tokenizer, chat template.

    Args:
        model_folder: The base model's folder; everything but its weights is copied.
        delta: What to apply.
        output_dir: Folder to make; it appears whole or not at all.
        model: The base, loaded from ``model_folder`` at the precision it was trained in; afterwards as before.
        base_digest: Digest of ``model_folder``.

    Raises:
        DeltaError: If the delta belongs to another base.
        UsageError: If ``output_dir`` is in use or can't be written.
    """
    check_base(delta.base_digest, base_digest)
    with _new_folder(output_dir) as folder:
        apply_delta(model, delta)
        try:
            model.save_pretrained(folder)
        finally:
            revert_delta(model, delta)
        _copy_companions(model_folder, folder)


def _copy_companions(source: Path, target: Path) -> None:
    """Copy what belongs to a model but is no weights, unless it is there already."""
    for path in source.iterdir():
        if path.is_dir() and path.name == "additional_chat_templates":
            shutil.copytree(path, target / path.name)
        companion = path.suffix in _COPIED or path.name.startswith("LICENSE")
        is_shard_index = path.name.endswith(".index.json")
        if path.is_file() and companion and not is_shard_index and not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)


def check_base(wanted: str, found: str) -> None:
    """Refuse a base whose digest is not the one wanted.

    Raises:
        DeltaError: If it is not.
    """
    if wanted != found:
        raise DeltaError(
            f"the delta belongs to the base {wanted[:12]}, this is {found[:12]}; use the base it was made on"
        )


def check_new_folder(path: Path) -> None:
    """Refuse a folder that holds something already.

    Raises:
        UsageError: If it does.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"{path} exists and is not empty; choose a new folder")


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``path`` on success."""
    try:
        check_new_folder(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise UsageError(f"can't write {path}: {error.strerror}; choose a folder you can write to") from error
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# --- PEFT ---------------------------------------------------------------------------------------


class _Difference(NamedTuple):
    """The change of one weight in fp32, and the new values that ``old + change`` misses, with their flat positions."""

    change: Tensor
    missed: Tensor
    exact: Tensor


def _difference(entry: DeltaEntry) -> _Difference:
    change = entry.new.float() - entry.old.float()
    bits = _BITS[entry.new.element_size()]
    missed = torch.nonzero((add_change(entry.old, change).view(bits) != entry.new.view(bits)).flatten()).flatten()
    return _Difference(change, missed, entry.new.flatten()[missed])


def add_change(old: Tensor, change: Tensor) -> Tensor:
    """Return ``old + change`` in the dtype of ``old``, computed in fp32."""
    return (old.float() + change).to(old.dtype)


def to_peft_shira(delta: Delta, output_dir: Path, *, base_source: str) -> None:
    """Write a SHiRA adapter: single entries, any kind of support.

    SHiRA gives every weight of shape (out, in) the same ``r`` and so ``r * (out + in)`` entries; unused places are
    filled with zero changes.

    Args:
        delta: What to export; of linear maps only.
        output_dir: Folder to make; it appears whole or not at all.
        base_source: Where PEFT finds the base model: a folder or a name on the hub.

    Raises:
        DeltaError: If a weight is too small to have that many entries, or is of no ``nn.Linear``.
        UsageError: If ``output_dir`` is in use or can't be written.

    Source: SHiRA, arXiv:2406.13175; the format is that of PEFT 0.21.
    """
    entries = {name: as_elements(entry) for name, entry in _by_module(delta, "SHiRA", ("linear",)).items()}
    rank = max(-(-len(entry.ids) // sum(entry.shape)) for entry in entries.values())
    tensors: dict[str, Tensor] = {}
    differences: dict[str, _Difference] = {}
    for name, entry in entries.items():
        rows, columns = entry.shape
        size = rank * (rows + columns)
        if size > rows * columns:
            raise DeltaError(
                f"SHiRA would hold {rank} * (out + in) entries of every weight; {name} of shape {entry.shape} "
                "has fewer; export a LoRA or merged weights"
            )
        ids = torch.cat([entry.ids.long(), _unused(entry, size - len(entry.ids))])
        difference = _difference(entry)
        differences[name] = difference
        tensors[f"{PEFT_PREFIX}{name}.shira_weight"] = F.pad(difference.change, (0, size - len(entry.ids)))
        tensors[f"{PEFT_PREFIX}{name}.shira_indices"] = torch.stack([ids // columns, ids % columns]).int()
    config = {"peft_type": "SHIRA", "r": rank, "mask_type": "random", "random_seed": 0, "init_weights": True}
    _write_adapter(output_dir, delta, entries, differences, tensors, config, base_source)


def _unused(entry: DeltaEntry, count: int) -> Tensor:
    """Return the first ``count`` flat indices that the entry does not change."""
    rows, columns = entry.shape
    free = torch.ones(rows * columns, dtype=torch.bool)
    free[entry.ids.long()] = False
    return torch.nonzero(free).flatten()[:count]


def to_peft_lora(delta: Delta, output_dir: Path, *, base_source: str) -> None:
    """Write a LoRA adapter that is exactly the delta: supports of columns or rows only.

    For columns C, ``W' - W = (new - old) E_C^T``: B is the change (out, r) and A picks the columns (r, in), with r
    their number and a scaling of 1. For rows, A is the change (r, in) and B puts it into its rows.

    Args:
        delta: What to export; of linear maps and Conv1D only.
        output_dir: Folder to make; it appears whole or not at all.
        base_source: Where PEFT finds the base model: a folder or a name on the hub.

    Raises:
        DeltaError: If a support is of another kind, or a weight is of an embedding.
        UsageError: If ``output_dir`` is in use or can't be written.

    Source: LoRA, arXiv:2106.09685; the format is that of PEFT 0.21.
    """
    entries = _by_module(delta, "LoRA", ("linear", "conv1d"))
    tensors: dict[str, Tensor] = {}
    differences: dict[str, _Difference] = {}
    for name, entry in entries.items():
        if entry.kind not in ("column", "row"):
            raise DeltaError(
                f"{name} has a support of kind '{entry.kind}', which is no LoRA; export it to SHiRA or merge it"
            )
        difference = _difference(entry)
        differences[name] = difference
        rows, columns = entry.shape
        if entry.kind == "column":
            a, b = F.one_hot(entry.ids.long(), columns).float(), difference.change
        else:
            a, b = difference.change, F.one_hot(entry.ids.long(), rows).float().T
        if entry.map_kind == "conv1d":  # PEFT transposes the product: B A is (out, in), the weight (in, out)
            a, b = b.T, a.T
        tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"] = a
        tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"] = b
    ranks = {name: len(entry.ids) for name, entry in entries.items()}
    rank = max(ranks.values())
    # PEFT reads these names as regular expressions; alpha = r everywhere, so that the scaling is 1
    patterns = {name.replace(".", r"\."): found for name, found in ranks.items() if found != rank}
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": patterns,
        "alpha_pattern": patterns,
        "lora_dropout": 0.0,
        "bias": "none",
    }
    _write_adapter(output_dir, delta, entries, differences, tensors, config, base_source)


def _by_module(delta: Delta, method: str, map_kinds: tuple[MapKind, ...]) -> dict[str, DeltaEntry]:
    """Return the delta's entries by the names of their modules.

    Raises:
        DeltaError: If PEFT's method can't change one of them.
    """
    for name, entry in delta.entries.items():
        if not name.endswith(".weight") or entry.map_kind not in map_kinds:
            raise DeltaError(
                f"PEFT's {method} takes weights of {' and '.join(map_kinds)} maps, {name} is of kind "
                f"'{entry.map_kind}'; export merged weights"
            )
    return {name.removesuffix(".weight"): entry for name, entry in delta.entries.items()}


def _write_adapter(
    output_dir: Path,
    delta: Delta,
    entries: Mapping[str, DeltaEntry],
    differences: Mapping[str, _Difference],
    tensors: Mapping[str, Tensor],
    config: Mapping[str, JSON],
    base_source: str,
) -> None:
    shared_config = {
        "base_model_name_or_path": base_source,
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "fan_in_fan_out": any(entry.map_kind == "conv1d" for entry in entries.values()),
        "target_modules": sorted(entries),
    }
    with _new_folder(output_dir) as folder:
        ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(ready, folder / ADAPTER_FILE, metadata={"format": "pt"})
        write_json(folder / _CONFIG_FILE, {**config, **shared_config})
        exact: dict[str, Tensor] = {}
        for name, difference in differences.items():
            exact[f"{name}::missed"] = difference.missed.cpu()
            exact[f"{name}::exact"] = difference.exact.cpu()
        metadata = {
            "format": EXACT_FORMAT,
            "adapter_sha256": sha256_file(folder / ADAPTER_FILE),
            "base_digest": delta.base_digest,
            "manifest": canonical_json(dict(delta.manifest)),
            "supports": canonical_json(
                {
                    name: {"kind": entry.kind, "units": len(entry.ids), "map": entry.map_kind}
                    for name, entry in entries.items()
                }
            ),
        }
        save_file(exact, folder / EXACT_FILE, metadata=metadata)
