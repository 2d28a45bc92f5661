"""Runs in MLflow: open or resume one, put parameters, metrics and files into it, end it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from sparsegate.contracts import JSON
from sparsegate.errors import RegistryError, TrackingError
from sparsegate.registry.connection import (
    as_description,
    connect,
    failures_as,
    is_missing,
    shortened,
    single_try,
)
from sparsegate.registry.reachability import check_tracking, sqlite_file

if TYPE_CHECKING:
    from lightning.pytorch.loggers import MLFlowLogger

__all__ = [
    "check_tracking",
    "count_runs",
    "describe_run",
    "end_run",
    "lightning_logger",
    "log_folder",
    "log_metrics",
    "log_params",
    "open_run",
    "set_tags",
]

# MLflow's limits, for one request and one value
_LOG = logging.getLogger(__name__)
_PARAMS_AT_ONCE = 100
_METRICS_AT_ONCE = 1000
_TAGS_AT_ONCE = 100
_LONGEST_PARAM = 6000


def open_run(
    uri: str,
    experiment: str,
    *,
    run_name: str,
    tags: Mapping[str, str],
    run_id: str | None = None,
    once_by: str | None = None,
) -> str:
    """Create a run, or take up an interrupted one.

    Args:
        uri: Tracking URI. With sqlite, artifacts of a new experiment go to ``mlartifacts`` beside the database.
        experiment: Name of the experiment; created where it is missing.
        run_name: Name of a new run.
        tags: Tags to set.
        run_id: Run to take up again; None creates one.
        once_by: A tag whose value names the run: one that has it already is taken up in place of a second.

    Returns:
        The run's id.

    Raises:
        TrackingError: If the run or the experiment was deleted, or the run is of another server.
        RegistryError: If MLflow fails.
    """
    client = connect(uri)
    with failures_as(RegistryError, uri, f"opening a run in experiment '{experiment}'"):
        if run_id is None:
            experiment_id = _experiment_id(client, uri, experiment)
            if once_by is not None:
                run_id = _run_with(client, experiment_id, once_by, tags[once_by])
        if run_id is None:
            with single_try():
                run = client.create_run(experiment_id, tags=dict(tags), run_name=run_name)
            return str(run.info.run_id)
        _check_open(client, run_id)
        client.update_run(run_id, status="RUNNING")
        _set_tags(client, run_id, tags)
        return run_id


def _check_open(client: Any, run_id: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        stage = client.get_run(run_id).info.lifecycle_stage
    except MlflowException as error:
        if is_missing(error):
            raise TrackingError(f"run {run_id} was not found in MLflow; start the run anew") from None
        raise
    if stage == "deleted":
        raise TrackingError(f"run {run_id} was deleted in MLflow; restore it, or start the run anew")


def _run_with(client: Any, experiment_id: str, tag: str, value: str) -> str | None:
    """Return the oldest run that carries a tag: it was created, and whoever did so died before it knew."""
    asked = f"tags.`{tag}` = '{value}'"
    found = client.search_runs([experiment_id], asked, order_by=["attributes.start_time ASC"], max_results=1)
    return str(found[0].info.run_id) if found else None


def _experiment_id(client: Any, uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        location = None
        if urlsplit(uri).scheme.startswith("sqlite"):
            # MLflow's default is relative to the working directory
            location = (sqlite_file(uri).parent / "mlartifacts").as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            found = client.get_experiment_by_name(name)  # another run may have been faster
            if found is None:
                raise error
    if found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"experiment '{name}' was deleted in MLflow; restore it with"
            f" 'mlflow experiments restore -x {found.experiment_id}', or name another in registry.experiment"
        )
    return str(found.experiment_id)


def count_runs(uri: str, experiment: str, *, tags: Mapping[str, str]) -> int:
    """Return how many runs of an experiment carry all of the tags, deleted ones included.

    Raises:
        RegistryError: If MLflow fails.
    """
    from mlflow.entities import ViewType

    client = connect(uri)
    with failures_as(RegistryError, uri, f"counting the runs of experiment '{experiment}'"):
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return 0
        asked = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        count, token = 0, None
        while True:
            page = client.search_runs([found.experiment_id], asked, run_view_type=ViewType.ALL, page_token=token)
            count, token = count + len(page), page.token
            if not token:
                return count


def lightning_logger(uri: str, experiment: str, run_id: str) -> MLFlowLogger:
    """Return Lightning's MLflow logger for an open run. It uploads no checkpoints and leaves the run open."""
    client = connect(uri)
    with failures_as(RegistryError, uri, f"reading run {run_id}"):
        experiment_id = str(client.get_run(run_id).info.experiment_id)
    from lightning.pytorch.loggers import MLFlowLogger

    class RunLogger(MLFlowLogger):
        """Lightning's logger, without its two habits of setting MLflow's global URI and of ending the run."""

        @property
        def experiment(self) -> Any:
            return client

        @property
        def experiment_id(self) -> str:
            return experiment_id

        def log_metrics(self, *arguments: Any, **named: Any) -> None:
            with failures_as(RegistryError, uri, "logging metrics"):
                super().log_metrics(*arguments, **named)

        def finalize(self, status: str = "success") -> None:
            """Leave the run open: gates and registration follow."""

    return RunLogger(experiment_name=experiment, tracking_uri=uri, run_id=run_id, log_model=False)


def log_params(uri: str, run_id: str, params: Mapping[str, JSON]) -> None:
    """Log flat parameters; a value beyond MLflow's 6000 characters is cut and ends in ``...``.

    Raises:
        RegistryError: If MLflow fails, or a parameter has another value already.
    """
    from mlflow.entities import Param

    client = connect(uri)
    with failures_as(RegistryError, uri, "logging parameters"):
        for part in _parts(
            [Param(key, shortened(str(value), _LONGEST_PARAM)) for key, value in params.items()], _PARAMS_AT_ONCE
        ):
            client.log_batch(run_id, params=part)


def log_metrics(uri: str, run_id: str, metrics: Mapping[str, float], *, step: int = 0) -> None:
    """Log figures at a step.

    Raises:
        RegistryError: If MLflow fails.
    """
    from mlflow.entities import Metric

    client = connect(uri)
    now_ms = int(time.time() * 1000)
    with failures_as(RegistryError, uri, "logging metrics"):
        entries = [Metric(name, float(value), now_ms, step) for name, value in metrics.items()]
        for part in _parts(entries, _METRICS_AT_ONCE):
            client.log_batch(run_id, metrics=part)


def log_folder(uri: str, run_id: str, folder: Path, artifact_path: str) -> None:
    """Upload a folder's files under ``artifact_path`` of the run.

    Raises:
        RegistryError: If the folder is missing or MLflow fails.
    """
    if not folder.is_dir():
        raise RegistryError(f"{folder} is no folder; nothing to log as '{artifact_path}'")
    client = connect(uri)
    with failures_as(RegistryError, uri, f"uploading {folder}"):
        client.log_artifacts(run_id, str(folder), artifact_path)


def set_tags(uri: str, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run.

    Raises:
        RegistryError: If MLflow fails.
    """
    client = connect(uri)
    with failures_as(RegistryError, uri, "setting tags"):
        _set_tags(client, run_id, tags)


def describe_run(uri: str, run_id: str, text: str) -> None:
    """Set the description that MLflow shows with a run, Markdown; what is beyond 5000 characters is cut.

    Raises:
        RegistryError: If MLflow fails.
    """
    set_tags(uri, run_id, {"mlflow.note.content": as_description(text)})


def _set_tags(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    for part in _parts([RunTag(key, str(value)) for key, value in tags.items()], _TAGS_AT_ONCE):
        client.log_batch(run_id, tags=part)


def end_run(uri: str, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
    """End a run.

    Raises:
        RegistryError: If MLflow fails.
    """
    client = connect(uri)
    with failures_as(RegistryError, uri, f"ending run {run_id}"):
        client.set_terminated(run_id, status)


@contextmanager
def ended_by_errors(uri: str, run_id: str) -> Iterator[None]:
    """End a run as failed, or killed, where the block raises; the block's error is the one to report."""
    try:
        yield
    except BaseException as error:
        try:
            end_run(uri, run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
        except RegistryError as second:
            _LOG.warning("%s", second)
        raise


def _parts(entries: Sequence[Any], size: int) -> Iterator[list[Any]]:
    remaining = iter(entries)
    while part := list(islice(remaining, size)):
        yield part
