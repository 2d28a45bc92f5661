"""The live version that a run is held against, and the lock under which that holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sparsegate.files import remove_leftovers
from sparsegate.registry.promotion import Champion, champion, has_versions
from sparsegate.workflow.lock import registry_lock
from sparsegate.workflow.run import Run


def find_champion(run: Run) -> Champion | None:
    """Download the live version; None where there is none. Nothing is then held against one that was live before."""
    registry = run.config.registry
    live = champion(registry.tracking_uri, registry.name, registry.alias, download_to=run.folder / "champion")
    if live is None:
        for stale in (run.folder / "evaluate").glob("*.champion.*"):
            stale.unlink()
    return live


def is_first(run: Run, live: Champion | None) -> bool:
    """Say whether this is the model's first version: no champion, and none that could have lost its alias."""
    return live is None and not has_versions(run.config.registry.tracking_uri, run.config.registry.name)


def number_of(live: Champion | None) -> int | None:
    """Return the live version's number; None where there is none."""
    return None if live is None else live.version


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """Hold the lock of the registered model: one run at a time trains and promotes it."""
    with registry_lock(run.folder.parent, run.config.registry):
        remove_leftovers(run.folder)
        yield
