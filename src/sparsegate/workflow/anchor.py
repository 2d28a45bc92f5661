"""The frozen version that every candidate is held against besides the live one."""

from __future__ import annotations

from pathlib import Path

from sparsegate.config import RegistryConfig
from sparsegate.errors import MissingEvidenceError
from sparsegate.registry.promotion import Champion
from sparsegate.registry.stored import download_version, has_version


def check_anchor(registry: RegistryConfig) -> None:
    """Check that the anchor is there, before anything is trained.

    Raises:
        MissingEvidenceError: If one is named and the registry does not have it.
    """
    if registry.anchor is not None and not has_version(registry.tracking_uri, registry.name, registry.anchor):
        raise _missing(registry)


def find_anchor(registry: RegistryConfig, *, download_to: Path) -> Champion | None:
    """Download the anchor; None where none is named.

    Raises:
        MissingEvidenceError: If one is named and the registry does not have it.
        RegistryError: If MLflow fails, or its bytes are missing or changed.
    """
    if registry.anchor is None:
        return None
    found = download_version(registry.tracking_uri, registry.name, registry.anchor, download_to=download_to)
    if found is None:
        raise _missing(registry)
    return found


def _missing(registry: RegistryConfig) -> MissingEvidenceError:
    return MissingEvidenceError(
        f"registry.anchor names version {registry.anchor} of '{registry.name}', which the registry does not have;"
        " name one that it has, or null before there is any"
    )
