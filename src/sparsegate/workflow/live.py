"""The champion in a running process: it answers, and takes up the next champion without a restart."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sparsegate.config import RegistryConfig
from sparsegate.errors import EvidenceError, ServingError, SparsegateError, UsageError
from sparsegate.registry.answering import Answering, answer_frame, load_package, make_predictor
from sparsegate.registry.package import DELTA_FILE, read_package
from sparsegate.registry.versions import live_version
from sparsegate.sparse.delta import apply_delta, read_delta, revert_delta
from sparsegate.workflow.identity import public_key_of
from sparsegate.workflow.verification import verify_version

if TYPE_CHECKING:
    import pandas as pd


class _Live(NamedTuple):
    version: int
    answering: Answering


def load_champion(
    name: str,
    *,
    tracking_uri: str = RegistryConfig.tracking_uri,
    alias: str = RegistryConfig.alias,
    public_key: Path | None = None,
) -> LiveModel:
    """Load the live version of a registered model, verified from the registry's bytes.

    Args:
        name: Registered model.
        tracking_uri: Tracking URI.
        alias: Alias of the live version.
        public_key: PEM file of the key that must have signed; None takes it from SPARSEGATE_SIGNING_KEY, and without
            that does not ask who signed.

    Raises:
        UsageError: If there is no such model or alias.
        EvidenceError: If the version does not verify.
        SparsegateError: If it can't be downloaded or loaded.
    """
    return LiveModel(name, tracking_uri=tracking_uri, alias=alias, public_key=public_key)


class LiveModel:
    """Answers prompts as the champion does; made by :func:`load_champion`. Any number of threads may use it.

    Args:
        name: Registered model.
        tracking_uri: Tracking URI.
        alias: Alias of the live version.
        public_key: PEM file of the key that must have signed, or None.
    """

    def __init__(self, name: str, *, tracking_uri: str, alias: str, public_key: Path | None) -> None:
        self._name, self._tracking_uri, self._alias = name, tracking_uri, alias
        self._public_key = public_key_of(public_key)
        self._reloading = threading.Lock()
        self._turnstile = _Turnstile()
        with tempfile.TemporaryDirectory() as scratch:
            version = self._live_version()
            self._live = _Live(version, load_package(self._fetch(version, Path(scratch))))

    @property
    def version(self) -> int:
        """The version that answers now."""
        return self._live.version

    def predict(self, prompts: pd.DataFrame | Sequence[str]) -> pd.DataFrame:
        """Answer each prompt; all answers of a call are of one version.

        Args:
            prompts: A frame with a column ``prompt``, or a list of prompts.

        Returns:
            One row for each prompt, in order: ``response``, and ``log_probability`` for classification.
        """
        with self._turnstile.passing():
            return answer_frame(self._live.answering, prompts)

    def reload(self) -> bool:
        """Take up the version that the alias names now, and say whether it is another one.

        It is downloaded and verified while the old one answers. On the same base only the delta is exchanged, in place
        and bit for bit, once the predictions under way have ended; another base is loaded beside the old one.

        Raises:
            ServingError: If it can't be taken up; the old version goes on answering.
        """
        with self._reloading, tempfile.TemporaryDirectory() as scratch:
            try:
                version = self._live_version()
                if version == self.version:
                    return False
                package = self._fetch(version, Path(scratch))
                if read_package(package).base_digest == self._live.answering.spec.base_digest:
                    self._swap(version, package)
                else:
                    live = _Live(version, load_package(package))
                    with self._turnstile.closed():
                        self._live = live
            except SparsegateError as error:
                raise ServingError(f"{error}; {self._name} version {self.version} goes on answering") from error
            return True

    def _live_version(self) -> int:
        version = live_version(self._tracking_uri, self._name, self._alias)
        if version is None:
            raise UsageError(
                f"there is no {self._name}@{self._alias}; 'sparsegate history {self._name}' lists versions"
            )
        return version

    def _fetch(self, version: int, folder: Path) -> Path:
        """Download and verify a version; return its package."""
        found = verify_version(self._tracking_uri, self._name, version, public_key=self._public_key, download_to=folder)
        if found.package is None or found.failed:
            raise EvidenceError(f"{self._name} version {version} can't be served: {'; '.join(found.failed)}")
        return found.package

    def _swap(self, version: int, package: Path) -> None:
        """Exchange the delta; whatever goes wrong, the old one is in place again."""
        spec, delta, old = read_package(package), read_delta(package / DELTA_FILE), self._live.answering
        predictor = make_predictor(spec, old.model, old.tokenizer)
        with self._turnstile.closed():
            revert_delta(old.model, old.delta)
            try:
                apply_delta(old.model, delta)
            except BaseException:
                apply_delta(old.model, old.delta)
                raise
            self._live = _Live(version, Answering(spec, delta, old.model, old.tokenizer, predictor))


class _Turnstile:
    """Lets any number pass at once; whoever closes it waits for them, and those who come meanwhile wait outside."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._is_closed = False

    @contextmanager
    def passing(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._is_closed)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def closed(self) -> Iterator[None]:
        with self._changed:
            self._is_closed = True
            self._changed.wait_for(lambda: self._inside == 0)
        try:
            yield
        finally:
            with self._changed:
                self._is_closed = False
                self._changed.notify_all()
