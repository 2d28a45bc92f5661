"""What the registry holds of each version: its files, its evidence, the record of who moved it and why, quarantine."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsegate.errors import EvidenceError, RegistryError, UsageError
from sparsegate.files import sha256_bytes
from sparsegate.registry.connection import connect, failures_as, is_missing, reason_of
from sparsegate.registry.lease import fence
from sparsegate.registry.package import EVIDENCE_FILE
from sparsegate.registry.promotion import check_model_name, has_versions
from sparsegate.registry.pyfunc import PACKAGE_PATH
from sparsegate.registry.reachability import is_new_store

_EVENTS = "events"
_QUARANTINE_TAG = "sparsegate.quarantine."


@dataclass(frozen=True)
class StoredVersion:
    """A version as the registry lists it; nothing of this is proof.

    Args:
        number: Its number.
        run_id: The run that made it.
        tags: Its tags.
        aliases: Aliases that name it.
        created_ms: When it was created, in milliseconds since 1970.
    """

    number: int
    run_id: str
    tags: Mapping[str, str]
    aliases: tuple[str, ...]
    created_ms: int


def list_versions(uri: str, name: str) -> list[StoredVersion]:
    """Return all versions of a registered model, the newest first.

    Raises:
        UsageError: If there is no such registered model.
        RegistryError: If MLflow fails.
    """
    check_model_name(name)
    client = connect(uri)
    with failures_as(RegistryError, uri, f"reading the versions of '{name}'"):
        aliases = _registered(client, name).aliases
        found: list[Any] = []
        token = None
        while True:
            page = client.search_model_versions(f"name = '{name}'", page_token=token)
            found += page
            token = page.token
            if not token:
                break
    versions = [
        StoredVersion(
            number=int(entry.version),
            run_id=entry.run_id or "",
            tags=dict(entry.tags),
            aliases=tuple(sorted(alias for alias, number in aliases.items() if int(number) == int(entry.version))),
            created_ms=entry.creation_timestamp,
        )
        for entry in found
    ]
    return sorted(versions, key=lambda version: -version.number)


def aliased_version(uri: str, name: str, alias: str) -> int | None:
    """Return the version that an alias names, or None.

    Raises:
        UsageError: If there is no such registered model.
        RegistryError: If MLflow fails.
    """
    check_model_name(name)
    client = connect(uri)
    with failures_as(RegistryError, uri, f"reading {name}@{alias}"):
        number = _registered(client, name).aliases.get(alias)
        return None if number is None else int(number)


def live_version(uri: str, name: str, alias: str) -> int | None:
    """Return the version that an alias names, or None, also where there is no such model; no database is made.

    Raises:
        RegistryError: If MLflow fails.
    """
    if is_new_store(uri) or not has_versions(uri, name):
        return None
    return aliased_version(uri, name, alias)


def _registered(client: Any, name: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if is_missing(error):
            raise UsageError(f"there is no registered model '{name}'; the MLflow UI lists them") from None
        raise


# --- files --------------------------------------------------------------------------------------


def download_model(uri: str, name: str, number: int, *, to: Path) -> Path:
    """Download all files of a version, unchecked.

    Returns:
        The model folder; the package lies in :data:`~sparsegate.registry.pyfunc.PACKAGE_PATH` of it.

    Raises:
        EvidenceError: If the files are gone.
        RegistryError: If MLflow fails.
    """
    return _download(uri, name, number, "", to)


def read_evidence(uri: str, name: str, number: int) -> bytes:
    """Download the evidence of a version, unchecked.

    Raises:
        EvidenceError: If it is gone.
        RegistryError: If MLflow fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        return _download(uri, name, number, f"{PACKAGE_PATH}/{EVIDENCE_FILE}", Path(scratch)).read_bytes()


def _download(uri: str, name: str, number: int, inside: str, to: Path) -> Path:
    client = connect(uri)
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException
    from mlflow.utils.uri import append_to_uri_path

    what = Path(inside).name or "its files"
    with failures_as(RegistryError, uri, f"downloading {what} of version {number} of '{name}'"):
        root = client.get_model_version_download_uri(name, str(number))
        source = append_to_uri_path(root, inside) if inside else root
        try:
            return Path(
                mlflow.artifacts.download_artifacts(source, dst_path=str(to), tracking_uri=uri, registry_uri=uri)
            )
        except (MlflowException, OSError) as error:
            folder = append_to_uri_path(root, str(Path(inside).parent)) if inside else root
            listed = [Path(file.path).name for file in mlflow.artifacts.list_artifacts(folder, tracking_uri=uri)]
            if Path(inside).name in listed if inside else listed:
                raise
            raise EvidenceError(f"version {number} of '{name}': {what} can't be read: {reason_of(error)}") from None


# --- records ------------------------------------------------------------------------------------


def record_event(uri: str, run_id: str, *, when: str, verb: str, sealed: str) -> None:
    """Keep the sealed record of an action with the run of the version it concerns.

    Raises:
        RegistryError: If MLflow fails.
    """
    client = connect(uri)
    # the digest keeps two records of one second apart
    file = f"{_EVENTS}/{when.replace(':', '')}-{verb}-{sha256_bytes(sealed.encode())[:8]}.dsse.json"
    with failures_as(RegistryError, uri, f"recording {verb}"):
        client.log_text(run_id, sealed, file)


def read_events(uri: str, run_id: str) -> list[bytes]:
    """Return the sealed records kept with a run, the oldest first; a run that is gone has none.

    Raises:
        RegistryError: If MLflow fails.
    """
    from mlflow.exceptions import MlflowException

    client = connect(uri)
    with (
        failures_as(RegistryError, uri, f"reading the records of run {run_id}"),
        tempfile.TemporaryDirectory() as folder,
    ):
        try:
            paths = sorted(entry.path for entry in client.list_artifacts(run_id, _EVENTS))
        except MlflowException as error:
            if is_missing(error):
                return []
            raise
        return [Path(client.download_artifacts(run_id, path, folder)).read_bytes() for path in paths]


# --- quarantine ---------------------------------------------------------------------------------


def quarantine(uri: str, name: str, delta_sha256: str, *, reason: str) -> None:
    """Forbid a delta for this registered model, whatever version holds it.

    Raises:
        LockedError: If another process has taken over the lock in the database.
        RegistryError: If MLflow fails.
    """
    fence(name)
    client = connect(uri)
    with failures_as(RegistryError, uri, f"quarantining a delta of '{name}'"):
        client.set_registered_model_tag(name, f"{_QUARANTINE_TAG}{delta_sha256}", sha256_bytes(reason.encode()))


def is_quarantined(uri: str, name: str, delta_sha256: str) -> bool:
    """Say whether a delta is forbidden for this registered model.

    Raises:
        UsageError: If there is no such registered model.
        RegistryError: If MLflow fails.
    """
    client = connect(uri)
    with failures_as(RegistryError, uri, f"reading the quarantine of '{name}'"):
        return f"{_QUARANTINE_TAG}{delta_sha256}" in _registered(client, name).tags
