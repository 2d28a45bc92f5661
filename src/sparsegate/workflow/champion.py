"""The live version that a run is held against, and the lock under which that holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sparsegate.config import RegistryConfig
from sparsegate.files import remove_leftovers
from sparsegate.registry.connection import redact
from sparsegate.registry.promotion import Champion, champion, has_versions
from sparsegate.registry.reachability import is_new_store
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


def first_problem(registry: RegistryConfig, *, first: bool) -> str | None:
    """Say why a run may not go on where the model has no version at all; None if it may.

    A wrong name or an empty store must not make an unattended run hold its candidate against nothing that was live.

    Args:
        registry: Where the versions are.
        first: Whoever started the run says that there is no version yet.

    Raises:
        RegistryError: If MLflow fails.
    """
    uri, name = registry.tracking_uri, registry.name
    if first or not (is_new_store(uri) or not has_versions(uri, name)):
        return None
    return (
        f"'{name}' has no version in {redact(uri)}, so there is no live model to hold a candidate against; if this is"
        " to be its first, give --first, and it is held against the base model; if not, check registry.name and"
        " registry.tracking_uri"
    )


def number_of(live: Champion | None) -> int | None:
    """Return the live version's number; None where there is none."""
    return None if live is None else live.version


@contextmanager
def locked(run: Run) -> Iterator[None]:
    """Hold the lock of the registered model: one run at a time trains and promotes it."""
    with registry_lock(run.folder.parent, run.config.registry):
        remove_leftovers(run.folder)
        yield
