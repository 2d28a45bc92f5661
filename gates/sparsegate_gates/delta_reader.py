"""Reads a delta file and a base model's weights side by side, without building a model."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, get_args

from sparsegate.contracts import SupportKind
from sparsegate.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "sparsegate-delta-1"
_PARTS = ("ids", "old", "new")


@dataclass(frozen=True)
class ParameterFindings:
    """What was found in one parameter of the delta.

    Args:
        name: Parameter name.
        entries: Entries of the weight that the delta covers.
        changed: Entries among them whose value differs from the old one.
        problems: Question to what is wrong.
    """

    name: str
    entries: int
    changed: int
    problems: dict[str, str] = field(default_factory=dict)


class BaseWeights:
    """The weights of a model folder, opened lazily over all its shards."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._file_of: dict[str, Any] = {}

    def __enter__(self) -> BaseWeights:
        for path in sorted(self._folder.glob("*.safetensors")):
            file = self._stack.enter_context(_open(path))
            for name in file.keys():  # noqa: SIM118  (safe_open is no mapping)
                if name in self._file_of:
                    raise DataError(f"the base model holds '{name}' in two of its files")
                self._file_of[name] = file
        if not self._file_of:
            raise DataError(f"the base model folder {self._folder.name} has no safetensors weights")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def read(self, name: str) -> Tensor:
        """Return one weight.

        Raises:
            DataError: If the base has no such weight.
        """
        # folders made from a bare model, as GPT-2's is, name their weights without the model's own prefix
        found = next((known for known in (name, name.partition(".")[2]) if known in self._file_of), None)
        if found is None:
            raise DataError(f"the delta changes '{name}', which the base model does not have")
        weight: Tensor = self._file_of[found].get_tensor(found)
        return weight


class DeltaReader:
    """A delta file, its header checked on opening."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = ExitStack()

    def __enter__(self) -> DeltaReader:
        self._file = self._stack.enter_context(_open(self._path))
        metadata: dict[str, str] = self._file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise DataError(f"{self._path.name} is marked '{metadata.get('format', '')}', not '{FORMAT}'")
        self.base_digest = metadata.get("base_digest", "")
        self._supports = _read_supports(metadata, self._path.name)
        wanted = {f"{name}::{part}" for name in self._supports for part in _PARTS}
        found = set(self._file.keys())
        if wanted != found:
            raise DataError(f"{self._path.name} and its header disagree on {sorted(wanted ^ found)[:3]}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def examine(self, base: BaseWeights) -> list[ParameterFindings]:
        """Compare each parameter with the base.

        Raises:
            DataError: If a parameter is not in the base, or shapes or types don't fit.
        """
        return [self._examine_one(name, support, base.read(name)) for name, support in sorted(self._supports.items())]

    def _examine_one(self, name: str, support: dict[str, Any], weight: Tensor) -> ParameterFindings:
        import torch

        from sparsegate.sparse.layouts import LAYOUTS

        ids, old, new = (self._file.get_tensor(f"{name}::{part}") for part in _PARTS)
        _check_fit(name, support, weight, ids, old, new)
        layout = LAYOUTS[support["kind"]]
        limit = layout.num_units((weight.shape[0], weight.shape[1]))
        problems: dict[str, str] = {}
        if not bool((ids[1:] > ids[:-1]).all()) or int(ids[0]) < 0 or int(ids[-1]) >= limit:
            problems["ids sorted, unique and in range"] = f"ids must rise strictly within [0, {limit})"
        elif not _same_bits(_as_stored(layout.gather(weight, ids), old), old):
            problems["old values equal the base's"] = "the old values are not this base's"
        if not bool(torch.isfinite(old).all() and torch.isfinite(new).all()):
            problems["values finite"] = "holds NaN or infinity"
        return ParameterFindings(name, entries=new.numel(), changed=int((old != new).sum()), problems=problems)


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path.name} is not a whole safetensors file: {error}") from None


def _read_supports(metadata: dict[str, str], file: str) -> dict[str, dict[str, Any]]:
    try:
        supports = json.loads(metadata["supports"])
        json.loads(metadata["manifest"])
        sound = bool(supports) and all(
            entry["kind"] in get_args(SupportKind) and len(entry["shape"]) == 2 for entry in supports.values()
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{file} has no sound header: {type(error).__name__} {error}") from None
    if not sound:
        kinds = ", ".join(get_args(SupportKind))
        raise DataError(f"{file} must name at least one parameter, each with kind ({kinds}) and shape (out, in)")
    return dict(supports)


def _check_fit(name: str, support: dict[str, Any], weight: Tensor, ids: Tensor, old: Tensor, new: Tensor) -> None:
    """Check shapes and types.

    Raises:
        DataError: If they don't fit the support or the base's weight.
    """
    import torch

    from sparsegate.sparse.layouts import LAYOUTS

    if list(weight.shape) != list(support["shape"]):
        raise DataError(f"'{name}' has shape {list(weight.shape)} in the base and {support['shape']} in the delta")
    if ids.ndim != 1 or len(ids) == 0 or ids.dtype not in (torch.int32, torch.int64):
        raise DataError(
            f"'{name}::ids' must be a list of whole numbers (int32 or int64), is {ids.dtype} {list(ids.shape)}"
        )
    shape = (weight.shape[0], weight.shape[1])
    wanted = list(LAYOUTS[support["kind"]].entries_shape(shape, len(ids)))
    if list(old.shape) != wanted or list(new.shape) != wanted:
        raise DataError(f"'{name}' needs old and new of shape {wanted}, has {list(old.shape)} and {list(new.shape)}")
    if old.dtype != new.dtype or not old.is_floating_point():
        raise DataError(f"'{name}' needs old and new of one floating-point type, has {old.dtype} and {new.dtype}")


def _as_stored(values: Tensor, like: Tensor) -> Tensor:
    """Return the base's values in the delta's type; a base stored in fewer bits widens without loss."""
    return values.to(like.dtype)


def _same_bits(ours: Tensor, theirs: Tensor) -> bool:
    import torch

    return torch.equal(ours.contiguous().view(torch.uint8), theirs.contiguous().view(torch.uint8))
