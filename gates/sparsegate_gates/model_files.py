"""What lies in the folder of a model that was trained elsewhere: no model is built, no link followed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sparsegate.contracts import Check, GateContext, Verdict
from sparsegate.errors import DataError
from sparsegate.files import read_json
from sparsegate.models.artifact import file_digests, unexpected


@dataclass(frozen=True)
class FolderFindings:
    """What was found.

    Args:
        unexpected: Files that don't belong into a model folder, and why.
        tensors: Number of weights.
        not_finite: Weights that hold NaN or infinity.
    """

    unexpected: Mapping[str, str]
    tensors: int
    not_finite: tuple[str, ...]

    @property
    def sound(self) -> bool:
        return not self.unexpected and self.tensors > 0 and not self.not_finite


def examine_folder(folder: Path) -> FolderFindings:
    """Look at every file, and at every weight one by one.

    Raises:
        DataError: If a weight file is not whole.
    """
    from safetensors import SafetensorError, safe_open

    strange = unexpected(folder)
    tensors, not_finite = 0, []
    for path in sorted(folder.glob("*.safetensors")):
        if path.name in strange:
            continue
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  (safe_open is no mapping)
                    tensors += 1
                    # float(): the 8-bit types know no isfinite
                    if not bool(file.get_tensor(name).float().isfinite().all()):
                        not_finite.append(name)
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path.name} is not a whole safetensors file: {error}") from None
    return FolderFindings(strange, tensors, tuple(not_finite))


def folder_checks(findings: FolderFindings) -> list[Check]:
    """Turn findings into one check for each question."""
    strange, bad = findings.unexpected, findings.not_finite
    return [
        Check.at_least("weights", findings.tensors, 1, n=max(1, findings.tensors)),
        Check.at_most(
            "files that don't belong",
            len(strange),
            0,
            n=1,
            reason="; ".join(f"{name} {why}" for name, why in list(strange.items())[:3]),
            items=tuple(strange),
        ),
        Check.at_most(
            "weights that are not finite",
            len(bad),
            0,
            n=max(1, findings.tensors),
            reason=f"NaN or infinity in {', '.join(bad[:3])}" if bad else "",
            items=bad,
        ),
    ]


def loaded_check(context: GateContext, place: Path) -> Check:
    """Judge whether the files at hand are those that were loaded and evaluated."""
    name = "files differ from those evaluated"
    if not context.has("loaded") or not context.path("loaded").is_file():
        return Check(name, Verdict.INSUFFICIENT, reason="no 'loaded' file: the candidate was not evaluated")
    data = read_json(context.path("loaded"))
    evaluated = data.get("files") if isinstance(data, Mapping) else None
    if not isinstance(evaluated, Mapping) or not evaluated:
        return Check(name, Verdict.ERROR, reason="the 'loaded' file must hold the digests of the files evaluated")
    now = file_digests(place) if place.is_dir() else {place.name: file_digests(place.parent)[place.name]}
    differ = sorted(file for file in {*now, *evaluated} if now.get(file) != evaluated.get(file))
    return Check.at_most(
        name,
        len(differ),
        0,
        n=len(evaluated),
        reason=f"{', '.join(differ[:3])} changed after the evaluation; judge again" if differ else said(data),
        items=tuple(differ),
    )


def said(loaded: Mapping[str, object]) -> str:
    """Say what of a candidate's tokenizer is not as the base's; nothing where all is."""
    same = loaded.get("as the base's")
    other = [str(name) for name, equal in same.items() if not equal] if isinstance(same, Mapping) else []
    return f"not as the base's: {', '.join(other)}" if other else ""
