"""Can the tracking server be used? Asked before training starts, answered within seconds."""

from __future__ import annotations

import math
import sqlite3
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from sparsegate.errors import TrackingError
from sparsegate.registry.connection import connect, failures_as, quiet_mlflow, reason_of, redact

_DATABASES = {"postgresql", "mysql", "mssql"}
_CHOICES = "sqlite:///FOLDER/mlflow.db, http(s)://HOST:PORT, or a database URI such as postgresql://HOST/NAME"


def check_tracking(uri: str, *, timeout_s: float = 10.0) -> None:
    """Check that runs can be tracked and models registered at a URI. Nothing is written.

    Args:
        uri: MLflow tracking URI.
        timeout_s: Longest wait for an answer, in seconds.

    Raises:
        TrackingError: With what is wrong and how to mend it; never with the credentials in the URI.
    """
    try:
        scheme = urlsplit(uri).scheme.split("+")[0].lower()
    except ValueError as error:
        raise TrackingError(f"tracking_uri '{redact(uri)}' is not a URI: {error}; choices: {_CHOICES}") from None
    if scheme in {"", "file"}:
        path = redact(uri).removeprefix("file:") or "mlruns"
        database = Path("/" + path.lstrip("/") if path.startswith("/") else path)
        database = database if database.suffix == ".db" else database / "mlflow.db"
        raise TrackingError(
            f"tracking_uri '{redact(uri)}' is a folder store, which MLflow no longer accepts; use 'sqlite:///{database}'"
        )
    if scheme in {"http", "https"}:
        _check_server(uri, timeout_s)
    elif scheme == "sqlite":
        _check_sqlite(uri, timeout_s)
    elif scheme in _DATABASES:
        _check_database(uri, timeout_s)
    else:
        raise TrackingError(f"tracking_uri '{redact(uri)}' has the unknown scheme '{scheme}'; choices: {_CHOICES}")


def sqlite_file(uri: str) -> Path:
    """Return the absolute path of the database file of a ``sqlite:`` URI.

    Raises:
        TrackingError: If the URI names no file.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        database = make_url(uri).database
    except ArgumentError:
        database = None
    if not database or database == ":memory:":
        raise TrackingError(f"tracking_uri '{redact(uri)}' names no database file; use sqlite:///FOLDER/mlflow.db")
    return Path(database).absolute()


def is_database(uri: str) -> bool:
    """Say whether a URI names a database that this process opens itself, and no server."""
    return urlsplit(uri).scheme.split("+")[0].lower() in {"sqlite", *_DATABASES}


def is_new_store(uri: str) -> bool:
    """Say whether nothing was ever tracked at a URI: it names a database file that MLflow would first have to make."""
    return urlsplit(uri).scheme.startswith("sqlite") and not sqlite_file(uri).exists()


def _check_server(uri: str, timeout_s: float) -> None:
    with quiet_mlflow():
        from mlflow.exceptions import MlflowException
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

    shown = redact(uri)
    try:
        response = http_request(
            get_default_host_creds(uri),
            "/api/2.0/mlflow/experiments/search",
            "POST",
            max_retries=0,
            timeout=timeout_s,
            raise_on_status=False,
            json={"max_results": 1},
        )
    except MlflowException as error:
        raise TrackingError(
            f"tracking server {shown} can't be reached: {_root_reason(error, timeout_s)};"
            " start it, or correct registry.tracking_uri"
        ) from None
    if response.status_code in {401, 403}:
        raise TrackingError(
            f"tracking server {shown} refuses the credentials (HTTP {response.status_code}); set"
            " MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    if response.status_code >= 500 or response.status_code == 429:
        raise TrackingError(f"tracking server {shown} is not ready (HTTP {response.status_code}); look into its log")
    if response.status_code != 200 or not _is_json_object(response):
        raise TrackingError(
            f"{shown} answers, but not like an MLflow tracking server (HTTP {response.status_code});"
            " correct registry.tracking_uri"
        )


def _is_json_object(response: Any) -> bool:
    try:
        return isinstance(response.json(), dict)
    except ValueError:
        return False


def _root_reason(error: BaseException, timeout_s: float) -> str:
    """Return what lies at the bottom of a failed request, such as ``Connection refused``."""
    cause: BaseException = error
    while (deeper := _deeper(cause)) is not None:
        if isinstance(deeper, TimeoutError) or "Timeout" in type(deeper).__name__:
            return f"no answer within {timeout_s:g} s"
        cause = deeper
    return getattr(cause, "strerror", None) or reason_of(cause)


def _deeper(error: BaseException) -> BaseException | None:
    # urllib3 hands a lost connection's error on as an argument
    inside = (argument for argument in error.args if isinstance(argument, OSError))
    return error.__cause__ or error.__context__ or next(inside, None)


def _check_sqlite(uri: str, timeout_s: float) -> None:
    path = sqlite_file(uri)
    folder = next(parent for parent in path.parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise TrackingError(
            f"the tracking database can't be kept in {path.parent}: {folder}: {error.strerror};"
            " choose a folder you can write to in registry.tracking_uri"
        ) from None
    if not path.exists():
        return
    try:
        connection = sqlite3.connect(
            f"file:{quote(str(path))}?mode=rw", uri=True, timeout=timeout_s, isolation_level=None
        )
        try:
            connection.execute("BEGIN IMMEDIATE")  # takes the write lock
            connection.execute("ROLLBACK")
            connection.execute("SELECT count(*) FROM sqlite_master")
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise TrackingError(
            f"the tracking database {path} can't be written: {error}; close what holds it, or name another file"
        ) from None
    _check_store(uri)


def _check_database(uri: str, timeout_s: float) -> None:
    import sqlalchemy
    from sqlalchemy.exc import SQLAlchemyError

    shown = redact(uri)
    try:
        url = sqlalchemy.engine.make_url(uri)
        waits = url.get_backend_name() in {"postgresql", "mysql"}
        options = {"connect_timeout": math.ceil(timeout_s)} if waits else {}
        # asked directly: MLflow's own engine tries ten times over two minutes
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool, connect_args=options)
        engine.connect().close()
    except ModuleNotFoundError as error:
        raise TrackingError(f"tracking database {shown} needs the driver '{error.name}'; install it with pip") from None
    except SQLAlchemyError as error:
        raise TrackingError(f"tracking database {shown} can't be reached: {reason_of(error)}") from None
    _check_store(uri)


def _check_store(uri: str) -> None:
    """Let MLflow itself look: the schema may be of another version."""
    with failures_as(TrackingError, uri, "opening the tracking database"):
        connect(uri).search_experiments(max_results=1)
