"""Versions and aliases: register a package once, read it back, find the champion, move the alias."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsegate.errors import DataError, DeltaError, RegistryError, UsageError
from sparsegate.files import sha256_file
from sparsegate.registry.connection import as_description, connect, failures_as, is_missing, single_try
from sparsegate.registry.lease import fence
from sparsegate.registry.package import DELTA_FILE, EVIDENCE_FILE, SPEC_FILE, read_package
from sparsegate.registry.pyfunc import PACKAGE_PATH, save_pyfunc

RUN_KEY_TAG = "sparsegate.run_key"
EVIDENCE_TAG = "sparsegate.evidence_sha256"
DELTA_TAG = "sparsegate.delta_sha256"
# shown with a new registered model
_ABOUT = (
    "Versions that passed their gates, registered by sparsegate. `sparsegate history {name}` says why each was made and"
    " who moved the aliases, `sparsegate verify models:/{name}/VERSION` proves what a version is; tags prove nothing."
)
_DIGEST_TAGS = {DELTA_FILE: DELTA_TAG, SPEC_FILE: "sparsegate.spec_sha256"}


@dataclass(frozen=True)
class Champion:
    """The live version, with its package on this machine.

    Args:
        name: Registered model.
        version: Its version.
        run_id: The run that made it.
        package: Downloaded serving folder; its digests are verified.
        tags: Tags of the version.
    """

    name: str
    version: int
    run_id: str
    package: Path
    tags: Mapping[str, str]


def check_model_name(name: str) -> None:
    """Check that a name can be registered and searched for.

    Raises:
        UsageError: If it can't.
    """
    if not re.fullmatch(r"[\w-][\w. -]*", name):
        raise UsageError(
            f"registry.name may have letters, digits, '_', '-', '.' and spaces, and must not start with '.' or a space;"
            f" got '{name}'"
        )


def register(
    uri: str,
    *,
    name: str,
    run_id: str,
    package: Path,
    input_example: Sequence[str],
    tags: Mapping[str, str],
    run_key: str,
    description: str = "",
) -> int:
    """Store a package as a new version of a registered model, once for each run key.

    The version is created last, in one step with its tags and without an alias. Whatever fails before leaves at most a
    logged model in the run (marked FAILED where MLflow can still be told) and no version. Calling again makes the
    version, or returns it if it was made and only the answer was lost. The caller holds the run's lock.

    Args:
        uri: Tracking URI.
        name: Registered model; created where it is missing.
        run_id: The run that made the package.
        package: Serving folder.
        input_example: Prompts shown as example.
        tags: Verdict and digests to keep with the version.
        run_key: Key of the run.
        description: Markdown shown with the version; what is beyond MLflow's 5000 characters is cut.

    Returns:
        The version.

    Raises:
        UsageError: If the name can't be used.
        LockedError: If another process has taken over the lock in the database.
        RegistryError: If MLflow fails.
    """
    check_model_name(name)
    assert re.fullmatch(r"[\w-]+", run_key), f"a run key is a digest, got {run_key!r}"
    read_package(package)
    client = connect(uri)
    with failures_as(RegistryError, uri, f"registering '{name}'"):
        existing = _version_of_run(client, name, run_key)
        if existing is not None:
            return existing
        model_id, location = _log_model(client, run_id, package, input_example, run_key)
        _ensure_registered_model(client, name)
        digests = {tag: sha256_file(package / file) for file, tag in _DIGEST_TAGS.items()}
        if (package / EVIDENCE_FILE).exists():
            digests[EVIDENCE_TAG] = sha256_file(package / EVIDENCE_FILE)
        return _create_once(
            client,
            name,
            run_key,
            # not models:/ID: MLflow would look that up at its global URI
            source=location,
            run_id=run_id,
            model_id=model_id,
            description=as_description(description),
            tags={**tags, **digests, RUN_KEY_TAG: run_key},
        )


def _create_once(client: Any, name: str, run_key: str, **version: Any) -> int:
    from mlflow.exceptions import MlflowException

    fence(name)
    try:
        with single_try():
            return int(client.create_model_version(name, **version).version)
    except (MlflowException, OSError):
        made = _version_of_run(client, name, run_key)
        if made is None:  # else it was created, and the answer was lost
            raise
        return made


def _version_of_run(client: Any, name: str, run_key: str) -> int | None:
    found = client.search_model_versions(f"name = '{name}' and tags.`{RUN_KEY_TAG}` = '{run_key}'")
    return min((int(entry.version) for entry in found), default=None)


def _log_model(client: Any, run_id: str, package: Path, input_example: Sequence[str], run_key: str) -> tuple[str, str]:
    """Upload the model folder as a logged model of the run; return its id and location."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    run = client.get_run(run_id)
    logged = client.create_logged_model(
        run.info.experiment_id, name="model", source_run_id=run_id, tags={RUN_KEY_TAG: run_key}
    )
    try:
        ids = Model(
            artifact_path=logged.artifact_location, run_id=run_id, model_uuid=logged.model_id, model_id=logged.model_id
        )
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            save_pyfunc(folder, package, input_example=input_example, model=ids)
            client.log_model_artifacts(logged.model_id, str(folder))
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        client.finalize_logged_model(logged.model_id, "READY")
    except BaseException:
        with suppress(Exception):  # the first failure is the one to report
            client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    return logged.model_id, logged.artifact_location


def _ensure_registered_model(client: Any, name: str) -> None:
    if _registered_model(client, name) is None:
        from mlflow.exceptions import MlflowException

        try:
            client.create_registered_model(name, description=_ABOUT.format(name=name))
        except MlflowException:
            if _registered_model(client, name) is None:  # else another run was faster
                raise


def _registered_model(client: Any, name: str) -> Any | None:
    """Return the registered model, or None where MLflow says that there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if is_missing(error):
            return None
        raise


def champion(uri: str, name: str, alias: str, *, download_to: Path) -> Champion | None:
    """Find the live version and download its package.

    Args:
        uri: Tracking URI.
        name: Registered model.
        alias: Alias of the live version.
        download_to: Folder that gets a folder ``version-N``; what was there is replaced.

    Returns:
        The champion, or None where the registered model or the alias does not exist.

    Raises:
        RegistryError: For everything else: unreachable server, version gone, bytes missing or changed.
    """
    client = connect(uri)
    with failures_as(RegistryError, uri, f"reading {name}@{alias}"):
        version = _aliased(client, name, alias)
        if version is None:
            return None
        found = client.get_model_version(name, str(version))
    package = download_to / f"version-{version}"
    download_package(uri, name, version, package)
    return Champion(name, version, found.run_id or "", package, dict(found.tags))


def version_of_run(uri: str, name: str, run_key: str) -> int | None:
    """Return the version that a run key was registered as, or None.

    Raises:
        RegistryError: If MLflow fails.
    """
    client = connect(uri)
    with failures_as(RegistryError, uri, f"reading the versions of '{name}'"):
        return _version_of_run(client, name, run_key)


def has_versions(uri: str, name: str) -> bool:
    """Say whether a registered model has any version.

    Raises:
        RegistryError: If MLflow fails.
    """
    client = connect(uri)
    with failures_as(RegistryError, uri, f"reading the versions of '{name}'"):
        return bool(client.search_model_versions(f"name = '{name}'", max_results=1))


def _aliased(client: Any, name: str, alias: str) -> int | None:
    registered = _registered_model(client, name)
    version = None if registered is None else registered.aliases.get(alias)
    return None if version is None else int(version)


def download_package(uri: str, name: str, version: int, package: Path) -> None:
    """Download a version's package, check it against itself and the version's tags, and put it in place whole."""
    client = connect(uri)
    with failures_as(RegistryError, uri, f"downloading version {version} of '{name}'"):
        import mlflow.artifacts
        from mlflow.utils.uri import append_to_uri_path

        tags = client.get_model_version(name, str(version)).tags
        source = append_to_uri_path(client.get_model_version_download_uri(name, str(version)), PACKAGE_PATH)
        package.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{package.name}.", dir=package.parent) as scratch:
            downloaded = Path(
                mlflow.artifacts.download_artifacts(source, dst_path=scratch, tracking_uri=uri, registry_uri=uri)
            )
            _check_download(downloaded, tags, f"version {version} of '{name}'")
            shutil.rmtree(package, ignore_errors=True)
            downloaded.rename(package)


def _check_download(package: Path, tags: Mapping[str, str], named: str) -> None:
    try:
        read_package(package)
    except (DataError, DeltaError) as error:
        raise RegistryError(f"{named} is damaged: {error}") from error
    for file, tag in _DIGEST_TAGS.items():
        if tags.get(tag) != sha256_file(package / file):
            raise RegistryError(
                f"{named} holds another {file} than its tag {tag} says; it was changed after it was registered"
            )


def verify_readback(uri: str, *, name: str, version: int, package: Path) -> None:
    """Download what was registered and compare it with what was given.

    Raises:
        RegistryError: If a byte differs, or the version can't be read.
    """
    with tempfile.TemporaryDirectory() as scratch:
        stored = Path(scratch) / "package"
        download_package(uri, name, version, stored)
        for file in _DIGEST_TAGS:
            if sha256_file(stored / file) != sha256_file(package / file):
                raise RegistryError(
                    f"version {version} of '{name}' holds another {file} than was registered; it must not be promoted"
                )


def promote(uri: str, name: str, version: int, alias: str, *, expected: int | None) -> None:
    """Move the alias to a version, unless somebody else moved it meanwhile.

    ``previous_ALIAS`` is set before ``ALIAS``, so that a way back exists at every moment. The caller holds a lock, for
    MLflow has no compare-and-set: the alias is read just before and just after it is written, and before each write
    a lock in the database is asked for once more.

    Args:
        uri: Tracking URI.
        name: Registered model.
        version: Version to promote.
        alias: Alias of the live version.
        expected: Version that the candidate was judged against; None if there was none.

    Raises:
        RegistryError: If the alias names neither ``expected`` nor ``version``, if the version is missing or not ready,
            or if MLflow fails.
        LockedError: If another process has taken over the lock in the database.
    """
    client = connect(uri)
    with failures_as(RegistryError, uri, f"promoting version {version} of '{name}'"):
        current = _aliased(client, name, alias)
        if current == version:  # promoted before, and killed right after
            return
        if current != expected:
            raise RegistryError(
                f"{name}@{alias} is version {_named(current)}, the candidate was judged against {_named(expected)};"
                " run again to judge it against the new one"
            )
        status = client.get_model_version(name, str(version)).status
        if status != "READY":
            raise RegistryError(f"version {version} of '{name}' is {status}, not READY")
        if current is not None:
            fence(name)
            client.set_registered_model_alias(name, f"previous_{alias}", str(current))
        fence(name)
        client.set_registered_model_alias(name, alias, str(version))
        now = _aliased(client, name, alias)
    if now != version:
        raise RegistryError(
            f"{name}@{alias} was set to {version} but is version {_named(now)}; another process moves it"
        )


def _named(version: int | None) -> str:
    return "none" if version is None else str(version)
