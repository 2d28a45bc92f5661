"""Adapters made by :mod:`sparsegate.sparse.export`, read back into deltas."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from sparsegate.errors import DeltaError
from sparsegate.files import sha256_file
from sparsegate.sparse.delta import Delta, DeltaEntry
from sparsegate.sparse.export import ADAPTER_FILE, EXACT_FILE, EXACT_FORMAT, PEFT_PREFIX, add_change, check_base
from sparsegate.sparse.support import SparseSupport


def from_peft(adapter: Path, base: nn.Module, *, base_digest: str) -> Delta:
    """Read an adapter made by :mod:`sparsegate.sparse.export` back, bit for bit.

    A SHiRA adapter gives single entries whatever the support was.

    Args:
        adapter: The adapter folder.
        base: The base model, untouched, at the precision of the delta.
        base_digest: Digest of the base model.

    Raises:
        DeltaError: If the folder is no such adapter, was changed, or belongs to another base.
    """
    metadata, exact = _read_exact(adapter)
    check_base(metadata["base_digest"], base_digest)
    if sha256_file(adapter / ADAPTER_FILE) != metadata["adapter_sha256"]:
        raise DeltaError(f"{adapter / ADAPTER_FILE} was changed since it was exported; train from the delta instead")
    tensors = load_file(adapter / ADAPTER_FILE)
    weights = dict(base.named_parameters())
    entries: dict[str, DeltaEntry] = {}
    for name, support in json.loads(metadata["supports"]).items():
        weight = weights.get(f"{name}.weight")
        missed, values = exact[f"{name}::missed"], exact[f"{name}::exact"]
        if weight is None or weight.dtype != values.dtype:
            raise DeltaError(
                f"the base has no {name}.weight of {values.dtype}; load the adapter's base at that precision"
            )
        prefix = f"{PEFT_PREFIX}{name}."
        parts = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        # absent in adapters made when only linear maps could be trained
        map_kind = support.get("map", "linear")
        if map_kind == "conv1d":
            parts = {"lora_A.weight": parts["lora_B.weight"].T, "lora_B.weight": parts["lora_A.weight"].T}
        ids, change = _ids_and_change(parts, support["kind"], support["units"], weight.shape[1])
        old = SparseSupport(support["kind"], ids, weight.detach().cpu()).originals
        new = add_change(old, change).contiguous()
        new.view(-1)[missed] = values
        rows, columns = weight.shape
        entries[f"{name}.weight"] = DeltaEntry(support["kind"], (rows, columns), ids, old, new, map_kind)
    return Delta(entries, base_digest, json.loads(metadata["manifest"]))


def _read_exact(adapter: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    path = adapter / EXACT_FILE
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except FileNotFoundError:
        raise DeltaError(f"{path} does not exist; only adapters exported by sparsegate can be read back") from None
    except (SafetensorError, OSError) as error:
        raise DeltaError(f"{path} is damaged: {error}") from None
    if metadata.get("format") != EXACT_FORMAT:
        raise DeltaError(f"{path} is not of format {EXACT_FORMAT}, but {metadata.get('format', 'unmarked')}")
    return metadata, tensors


def _ids_and_change(parts: Mapping[str, Tensor], kind: str, num_units: int, columns: int) -> tuple[Tensor, Tensor]:
    """Return the ids of a support and the change of its entries, from an adapter's tensors of one weight."""
    if kind == "element":
        row, column = parts["shira_indices"][:, :num_units].long()
        ids, change = row * columns + column, parts["shira_weight"][:num_units]
    elif kind == "column":
        ids, change = parts["lora_A.weight"].argmax(1), parts["lora_B.weight"]
    else:
        ids, change = parts["lora_B.weight"].argmax(0), parts["lora_A.weight"]
    return ids.to(torch.int32) if int(ids[-1]) < 2**31 else ids, change
