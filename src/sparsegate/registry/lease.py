"""The lock of a registered model in the tracking database: it excludes machines that share no folder of runs.

One row for each model holds who has it, a fencing token that grows with each holder, and a beat that its holder goes on
counting. No clock is compared with another: whoever finds the row held watches, by its own monotonic clock, whether the
beat still moves. If it does, the lock is held; if it stands still for the length of a lease, its holder is dead or cut
off, and whoever then raises the token first has the lock. A holder asks before each write to the registry whether the
token is still its own (:func:`fence`), and the asking renews its lease: only a process that is stopped for a whole
lease between the asking and the write could still write too late.

A tracking server (``http:``) hands out no such row: there only the lock in the folder of runs excludes others.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import sqlalchemy as sql
from sqlalchemy.exc import DBAPIError, IntegrityError

from sparsegate.errors import LockedError, RegistryError, SparsegateError
from sparsegate.registry.connection import failures_as, quiet_mlflow, redact
from sparsegate.registry.reachability import is_database, sqlite_file

LEASE_S = 60.0
_BEAT_S = 5.0
_LOG = logging.getLogger(__name__)
_LOCKS = sql.Table(
    "sparsegate_locks",
    sql.MetaData(),
    sql.Column("model", sql.String(256), primary_key=True),
    sql.Column("holder", sql.String(512)),
    sql.Column("token", sql.BigInteger, nullable=False),
    sql.Column("beat", sql.BigInteger, nullable=False),
)


class _Row(NamedTuple):
    holder: str | None
    token: int
    beat: int


@contextmanager
def lease(
    uri: str, name: str, *, holder: str, dead: str | None = None, lease_s: float = LEASE_S, beat_s: float = _BEAT_S
) -> Iterator[None]:
    """Hold the lock of a registered model in the tracking database; a thread renews it.

    Args:
        uri: URI of the database; the table of locks is made where it is missing.
        name: Registered model.
        holder: Who takes it, unlike any other holder's text.
        dead: A holder that is known to be dead: nobody waits for it.
        lease_s: How long a beat must stand still until its holder counts as dead, in seconds.
        beat_s: Time between two beats, in seconds.

    Raises:
        LockedError: If another process holds it.
        RegistryError: If the database can't be read or written.
    """
    locks = _Locks(uri, name)
    try:
        with failures_as(RegistryError, uri, f"locking '{name}'"):
            locks.prepare()
            held = _Lease(locks, locks.take(holder, dead=dead, lease_s=lease_s))
        stopped = threading.Event()
        beating = threading.Thread(target=held.keep, args=(stopped, beat_s), name=f"lease of {name}", daemon=True)
        beating.start()
        before = _HELD.set(held)
        try:
            yield
        finally:
            _HELD.reset(before)
            stopped.set()
            beating.join()
            held.release()
    finally:
        locks.engine.dispose()


def fence(name: str) -> None:
    """Refuse to go on if this process has lost the lock of a registered model; called before each write about it.

    Where it holds none in a database there is nothing to lose.

    Raises:
        LockedError: If another process has taken it over.
        RegistryError: If the database can't be asked.
    """
    held = _HELD.get()
    if held is not None and held.locks.name == name:
        held.renew()


def lease_holder(uri: str, name: str) -> str | None:
    """Say who holds the lock in the database, alive or not; None if nobody does, or the URI names no database.

    Raises:
        RegistryError: If the database can't be read.
    """
    if not is_database(uri) or (uri.startswith("sqlite") and not sqlite_file(uri).exists()):
        return None
    locks = _Locks(uri, name)
    try:
        with failures_as(RegistryError, uri, f"reading the lock of '{name}'"):
            row = locks.read() if sql.inspect(locks.engine).has_table(_LOCKS.name) else None
            return None if row is None else row.holder
    finally:
        locks.engine.dispose()


class _Locks:
    """The row of one model."""

    def __init__(self, uri: str, name: str) -> None:
        with quiet_mlflow():
            from mlflow.store.db.utils import create_sqlalchemy_engine  # knows MLflow's TLS and pool settings

        if uri.startswith("sqlite"):
            sqlite_file(uri).parent.mkdir(parents=True, exist_ok=True)
        self.uri, self.name = uri, name
        self.engine: sql.Engine = create_sqlalchemy_engine(uri)

    def prepare(self) -> None:
        """Make the table and the row; whoever comes second in either finds it made."""
        if not sql.inspect(self.engine).has_table(_LOCKS.name):
            try:
                _LOCKS.create(self.engine)
            except DBAPIError:
                if not sql.inspect(self.engine).has_table(_LOCKS.name):
                    raise
        if self.read() is None:
            try:
                with self.engine.begin() as connection:
                    connection.execute(sql.insert(_LOCKS).values(model=self.name, token=0, beat=0))
            except IntegrityError:
                if self.read() is None:
                    raise

    def read(self) -> _Row | None:
        columns = (_LOCKS.c.holder, _LOCKS.c.token, _LOCKS.c.beat)
        with self.engine.connect() as connection:
            found = connection.execute(sql.select(*columns).where(_LOCKS.c.model == self.name)).one_or_none()
        return None if found is None else _Row(*found)

    def change(self, *only_if: sql.ColumnElement[bool], **values: Any) -> bool:
        """Change the row in one step if it is as thought; say whether it was."""
        with self.engine.begin() as connection:
            changed = connection.execute(sql.update(_LOCKS).where(_LOCKS.c.model == self.name, *only_if).values(values))
            return changed.rowcount == 1

    def take(self, holder: str, *, dead: str | None, lease_s: float) -> int:
        """Take the lock if it is free or its holder is dead; return the token."""
        seen = self._watch(dead, lease_s)
        same = (_LOCKS.c.token == seen.token, _LOCKS.c.beat == seen.beat)
        if not self.change(*same, holder=holder, token=seen.token + 1, beat=0):
            raise self.held_by(self.read())
        return seen.token + 1

    def _watch(self, dead: str | None, lease_s: float) -> _Row:
        """Return the row once nobody holds it, or its holder's beat has stood still for a lease."""
        first, until = self.read(), time.monotonic() + lease_s
        if first is not None and first.holder not in (None, dead):
            _LOG.info("'%s' is locked by %s; watching whether that is alive", self.name, first.holder)
        while True:
            row = self.read()
            if row is not None and (row.holder in (None, dead) or (row == first and time.monotonic() >= until)):
                return row
            if row != first:
                raise self.held_by(row)
            time.sleep(min(0.5, lease_s / 4))

    def held_by(self, row: _Row | None) -> LockedError:
        by = f" ({row.holder})" if row is not None and row.holder else ""
        return LockedError(f"another run of '{self.name}' is at work on {redact(self.uri)}{by}; try again later")


class _Lease:
    """The lock while this process has it, or thinks so."""

    def __init__(self, locks: _Locks, token: int) -> None:
        self.locks, self._mine = locks, _LOCKS.c.token == token

    def renew(self) -> None:
        """Count one beat, if the token is still ours."""
        name, uri = self.locks.name, self.locks.uri
        with failures_as(RegistryError, uri, f"renewing the lock of '{name}'"):
            if self.locks.change(self._mine, beat=_LOCKS.c.beat + 1):
                return
            row = self.locks.read()
        by = f" by {row.holder}" if row is not None and row.holder else ""
        raise LockedError(
            f"the lock of '{name}' on {redact(uri)} was taken over{by}, because this process did not renew it in time;"
            " nothing more is written, run again"
        )

    def keep(self, stopped: threading.Event, beat_s: float) -> None:
        """Renew until stopped, or lost; a database that does not answer is asked again."""
        while not stopped.wait(beat_s):
            try:
                self.renew()
            except LockedError as error:
                _LOG.warning("%s", error)
                return
            except SparsegateError as error:
                _LOG.warning("%s", error)

    def release(self) -> None:
        """Free the lock; where that fails it is free once the lease is over."""
        try:
            with failures_as(RegistryError, self.locks.uri, f"freeing the lock of '{self.locks.name}'"):
                self.locks.change(self._mine, holder=None)
        except RegistryError as error:
            _LOG.warning("%s", error)


_HELD: ContextVar[_Lease | None] = ContextVar("lease", default=None)
