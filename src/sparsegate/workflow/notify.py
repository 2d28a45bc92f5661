"""Tells a webhook how a run ended. A webhook that can't be reached is a warning and never changes how the run ends."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from sparsegate.config import NotifyConfig, notify_url_problem
from sparsegate.contracts import JSON
from sparsegate.errors import ConfigError
from sparsegate.workflow.outcome import Outcome, ending_of

_LOG = logging.getLogger(__name__)
_PAUSE_S = 1.0


def announced(config: NotifyConfig, work: Callable[[], Outcome]) -> Outcome:
    """Do a run's work and post how it ended, as :meth:`Outcome.to_json`; an error is posted as message and exit code.

    Raises:
        ConfigError: If the webhook's URL can't be used; the work was not begun.
    """
    url = _resolve(config.url)
    if url is None:
        return work()
    try:
        outcome = work()
    except Exception as error:
        message, code = ending_of(error)
        post(url, {"message": message, "exit_code": int(code)}, timeout_s=config.timeout_s)
        raise
    post(url, outcome.to_json(), timeout_s=config.timeout_s)
    return outcome


def post(url: str, body: JSON, *, timeout_s: float) -> bool:
    """POST JSON, with one retry, and say whether it arrived; redirects are not followed.

    Args:
        url: The webhook; only its host is logged, since the rest may be a secret.
        body: What to send.
        timeout_s: Longest wait for each try, in seconds.
    """
    data = json.dumps(body, ensure_ascii=False).encode()
    request = Request(url, data, {"Content-Type": "application/json", "User-Agent": "sparsegate"}, method="POST")
    for last in (False, True):
        try:
            with build_opener(_NoRedirect).open(request, timeout=timeout_s):
                return True
        except (OSError, HTTPException) as error:
            if last:
                _LOG.warning("the webhook at %s was not reached: %s, tried twice", urlsplit(url).hostname, _why(error))
            else:
                time.sleep(_PAUSE_S)
    return False


def _why(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"HTTP {error.code}"
    return type(error.reason if isinstance(error, URLError) else error).__name__


class _NoRedirect(HTTPRedirectHandler):
    """Takes a redirect for an error: followed, it would turn the POST into a GET to whatever host it names."""

    def redirect_request(self, *_arguments: Any) -> None:
        return None


def _resolve(url: str | None) -> str | None:
    """Return the URL itself where it stands in the environment."""
    if url is None or not url.startswith("env:"):
        return url
    name = url.removeprefix("env:")
    found = os.environ.get(name)
    if found is None:
        raise ConfigError([f"notify.url names the environment variable {name}, which is not set"])
    if notify_url_problem(found):
        raise ConfigError([f"the environment variable {name} of notify.url must hold an http:// or https:// URL"])
    return found
