"""Removes what old runs left: their folders, and the kept evaluation results that only they used."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from sparsegate.contracts import JSON
from sparsegate.errors import DataError, ExitCode, UsageError
from sparsegate.files import read_json, sha256_file
from sparsegate.models import cache_folder
from sparsegate.registry.promotion import RUN_KEY_TAG, has_versions
from sparsegate.registry.reachability import is_new_store
from sparsegate.registry.versions import list_versions
from sparsegate.workflow.lock import model_lock

_REMOVING = ".removing-"  # a folder of this name is gone for everybody else, and a killed prune goes on with it


@dataclass(frozen=True)
class Pruned:
    """What was removed, or would be.

    Args:
        message: One line: how much.
        removed: Folders and files.
        kept: Folders of runs that stay, with why.
        removed_bytes: Their size.
        dry_run: Nothing was removed.
    """

    message: str
    removed: tuple[str, ...]
    kept: dict[str, str]
    removed_bytes: int
    dry_run: bool

    exit_code = ExitCode.PASSED

    def to_json(self) -> dict[str, JSON]:
        return asdict(self)

    def render(self) -> str:
        """Return one line for each run, and the message."""
        word = "would go" if self.dry_run else "removed"
        lines = [*(f"stays     {path} ({why})" for path, why in self.kept.items())]
        return "\n".join([*lines, *(f"{word:<10}{path}" for path in self.removed), "", self.message])


def prune(
    runs: Path, name: str, *, tracking_uri: str, keep: int = 10, cache_dir: Path | None = None, dry_run: bool = False
) -> Pruned:
    """Remove the runs of a registered model that are neither among the newest nor behind a version.

    The lock is held meanwhile, so none of them is at work. A run that was removed would run again if it were asked for
    with the same inputs in the same slot. Other models' runs in the folder stay.

    Args:
        runs: Folder of all runs.
        name: Registered model.
        tracking_uri: Tracking URI; it must answer, or nothing is removed.
        keep: How many of the newest runs stay, by when they were last started.
        cache_dir: Where the runs kept evaluation results; None is the user's cache folder.
        dry_run: Remove nothing.

    Raises:
        UsageError: If there is no such folder.
        LockedError: If a run of this model is at work.
        RegistryError: If MLflow fails; nothing was removed.
    """
    runs = runs.absolute()
    if not runs.is_dir():
        raise UsageError(f"there is no folder of runs {runs}; give another by --output_dir")
    with model_lock(runs, name):
        registered = _registered_keys(tracking_uri, name)
        mine = [folder for folder in runs.iterdir() if _is_of(folder, name)]
        mine.sort(key=lambda folder: (folder / "manifest.json").stat().st_mtime_ns, reverse=True)
        kept, gone = {}, list(runs.glob(f"{_REMOVING}*"))
        for position, folder in enumerate(mine):
            if folder.name in registered:
                kept[str(folder)] = f"version {registered[folder.name]}"
            elif position < keep:
                kept[str(folder)] = f"among the newest {keep}"
            else:
                gone.append(folder)
        gone += [rates for folder in gone if (rates := folder.with_name(f"{folder.name}.learning_rate.json")).exists()]
        others = [folder for folder in runs.iterdir() if folder not in gone]
        gone += _only_used_by(gone, others, cache_folder(cache_dir) / "evaluations")
        size = sum(_size(path) for path in gone)
        if not dry_run:
            for path in gone:
                _remove(path)
    did = "would be removed" if dry_run else "removed"
    message = (
        f"{name}: {len(gone)} folders and files {did}, {size:,} bytes ({size / 1e6:.1f} MB); {len(kept)} runs stay"
    )
    return Pruned(message, tuple(str(path) for path in gone), kept, size, dry_run)


def _registered_keys(tracking_uri: str, name: str) -> dict[str, int]:
    """Return the folder names of the runs behind versions, with the version."""
    if is_new_store(tracking_uri) or not has_versions(tracking_uri, name):
        return {}
    return {version.tags.get(RUN_KEY_TAG, "")[:16]: version.number for version in list_versions(tracking_uri, name)}


def _is_of(folder: Path, name: str) -> bool:
    """Say whether a folder is a run of a registered model; a link, or what can't be read, is not, and stays."""
    if folder.name.startswith(".") or folder.is_symlink():
        return False
    try:
        read_json(folder / "manifest.json")
        return bool(read_json(folder / "config.json")["registry"]["name"] == name)
    except (DataError, OSError, KeyError, TypeError):
        return False


def _only_used_by(gone: Iterable[Path], others: Iterable[Path], kept_results: Path) -> list[Path]:
    """Return the kept evaluation results that runs to be removed used, and no other run in the folder does."""
    digests = _results_of(gone) - _results_of(others)
    return [path for path in sorted(kept_results.glob("*.jsonl")) if digests and sha256_file(path) in digests]


def _results_of(folders: Iterable[Path]) -> set[str]:
    """Return the digests of all evaluation results that the ledgers of runs name."""
    found: set[str] = set()
    for folder in folders:
        if (folder / "ledger.json").is_file():
            for files in read_json(folder / "ledger.json")["stages"].values():
                found |= {digest for name, digest in files.items() if name.startswith("evaluate/")}
    return found


def _size(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.lstat().st_size for file in files if not file.is_dir() or file.is_symlink())


def _remove(path: Path) -> None:
    if path.is_file():
        path.unlink()
        return
    if not path.name.startswith(_REMOVING):
        path = path.rename(path.with_name(f"{_REMOVING}{path.name}"))
    shutil.rmtree(path)
