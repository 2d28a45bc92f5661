"""Packages of this project that lie in MLflow, downloaded and checked: any version, or what a run logged."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from sparsegate.errors import DataError, DeltaError, RegistryError, UsageError
from sparsegate.registry.connection import connect, failures_as, is_missing
from sparsegate.registry.package import read_package
from sparsegate.registry.promotion import Champion, champion, check_model_name, download_package
from sparsegate.registry.pyfunc import PACKAGE_PATH


def has_version(uri: str, name: str, number: int) -> bool:
    """Say whether a registered model has a version.

    Raises:
        RegistryError: If MLflow fails.
    """
    from mlflow.exceptions import MlflowException

    client = connect(uri)
    with failures_as(RegistryError, uri, f"reading version {number} of '{name}'"):
        try:
            client.get_model_version(name, str(number))
        except MlflowException as error:
            if is_missing(error):
                return False
            raise
    return True


def download_version(uri: str, name: str, which: int | str, *, download_to: Path) -> Champion | None:
    """Download a version with its package, checked as a champion's.

    Args:
        uri: Tracking URI.
        name: Registered model.
        which: Its number, or an alias.
        download_to: Folder that gets a folder ``version-N``; what was there is replaced.

    Returns:
        The version, or None where there is no such model, version or alias.

    Raises:
        UsageError: If the name can't be one.
        RegistryError: If MLflow fails, or its bytes are missing or changed.
    """
    check_model_name(name)
    if isinstance(which, str):
        return champion(uri, name, which, download_to=download_to)
    if not has_version(uri, name, which):
        return None
    client = connect(uri)
    with failures_as(RegistryError, uri, f"reading version {which} of '{name}'"):
        found = client.get_model_version(name, str(which))
    package = download_to / f"version-{which}"
    download_package(uri, name, which, package)
    return Champion(name, which, found.run_id or "", package, dict(found.tags))


def download_run_package(uri: str, run_id: str, path: str, *, download_to: Path) -> Path:
    """Download the package that a run logged, and check it against itself.

    Args:
        uri: Tracking URI.
        run_id: The run.
        path: Name of its model, such as ``model``.
        download_to: Folder that gets a folder ``run-ID``; what was there is replaced.

    Raises:
        UsageError: If the run has no such model, or one that this project did not make.
        RegistryError: If MLflow fails.
    """
    package = download_to / f"run-{re.sub(r'[^0-9A-Za-z]', '', run_id)}"
    download_to.mkdir(parents=True, exist_ok=True)
    client = connect(uri)
    import mlflow.artifacts
    from mlflow.utils.uri import append_to_uri_path

    with (
        failures_as(RegistryError, uri, f"downloading {path} of run {run_id}"),
        tempfile.TemporaryDirectory(prefix=f".{package.name}.", dir=download_to) as scratch,
    ):
        location = _logged_model(client, run_id, path)
        if location is None:
            raise UsageError(f"runs:/{run_id}/{path}: there is no such run, or it logged no model of that name")
        try:
            downloaded = Path(
                mlflow.artifacts.download_artifacts(
                    append_to_uri_path(location, PACKAGE_PATH), dst_path=scratch, tracking_uri=uri
                )
            )
            read_package(downloaded)
        except (DataError, DeltaError, FileNotFoundError) as error:
            raise UsageError(f"runs:/{run_id}/{path} is no model of this project, or is damaged: {error}") from None
        shutil.rmtree(package, ignore_errors=True)
        downloaded.rename(package)
    return package


def _logged_model(client: Any, run_id: str, name: str) -> str | None:
    """Return where the newest whole model of a run and name lies, or None."""
    from mlflow.exceptions import MlflowException

    try:
        outputs = client.get_run(run_id).outputs
    except MlflowException as error:
        if is_missing(error):
            return None
        raise
    models = [client.get_logged_model(output.model_id) for output in (outputs.model_outputs if outputs else [])]
    whole = [model for model in models if model.name == name and str(model.status) == "READY"]
    return max(whole, key=lambda model: model.creation_timestamp).artifact_location if whole else None
