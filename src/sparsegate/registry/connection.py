"""The one way to MLflow: a quiet client bound to one URI, and its failures as one clear line without credentials."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sparsegate.errors import SparsegateError

# Read by MLflow when it is imported. A value that the user has set stands.
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    # the requirements of a model are given, never guessed from the working directory
    "MLFLOW_UV_AUTO_DETECT": "false",
}
_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_USER_INFO = re.compile(r"(?<=://)[^\s/'\"]*@")
_QUERY = re.compile(r"(?<=://)([^\s?'\"]*)\?[^\s'\")]*")
_LONGEST_REASON = 300
_LONGEST_DESCRIPTION = 5000  # of a version, in MLflow's database


def redact(text: str) -> str:
    """Return the text without the user, password and query of any URI in it.

    Example:
        >>> redact("can't reach https://ana:secret@tracking.example/mlflow?token=1")
        "can't reach https://tracking.example/mlflow"
    """
    return _QUERY.sub(r"\1", _USER_INFO.sub("", text))


def connect(uri: str) -> Any:
    """Return an ``MlflowClient`` for tracking and registry at one URI; MLflow's global URI stays as it is."""
    with quiet_mlflow():
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def quiet_mlflow() -> Iterator[None]:
    """Import MLflow inside this: it stays off stdout, sends no telemetry, and keeps its warnings about itself."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def single_try() -> Iterator[None]:
    """Inside this MLflow's HTTP client sends each request once: what creates would create twice after a lost answer."""
    retries = os.environ.get(_RETRIES)
    os.environ[_RETRIES] = "0"
    try:
        yield
    finally:
        if retries is None:
            del os.environ[_RETRIES]
        else:
            os.environ[_RETRIES] = retries


@contextmanager
def failures_as(error_type: type[SparsegateError], uri: str, doing: str) -> Iterator[None]:
    """Turn what MLflow raises into one error for the user.

    Args:
        error_type: Class of the error raised.
        uri: Tracking URI, named in the message without its credentials.
        doing: What was being done, such as ``"reading the champion"``.
    """
    with quiet_mlflow():
        from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        # no cause: its text may hold the credentials of the URI
        raise error_type(f"{doing} at {redact(uri)} failed: {reason_of(error)}") from None


def reason_of(error: BaseException) -> str:
    """Return the first line of what an exception says, without credentials."""
    lines = redact(str(error)).strip().splitlines() or [type(error).__name__]
    return lines[0][:_LONGEST_REASON]


def shortened(text: str, longest: int) -> str:
    """Return a text, cut to a length and then ending in ``...``.

    Example:
        >>> shortened("a long story", 9)
        'a long...'
    """
    return text if len(text) <= longest else text[: longest - 3] + "..."


def as_description(text: str) -> str:
    """Return Markdown that MLflow shows with a run or a version, cut to what its database takes."""
    return shortened(text, _LONGEST_DESCRIPTION)


def is_missing(error: Exception) -> bool:
    """Say whether MLflow itself answered that the thing asked for does not exist."""
    return getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"
