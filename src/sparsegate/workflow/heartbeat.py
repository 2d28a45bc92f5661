"""Did last night's run start, and how did it end? A small file for each registered model, for an alarm to look at."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sparsegate.config import RunConfig
from sparsegate.contracts import JSON
from sparsegate.errors import DataError, ExitCode, SparsegateError
from sparsegate.files import read_json, write_json
from sparsegate.registry.lease import lease_holder
from sparsegate.workflow.lock import lock_holder
from sparsegate.workflow.outcome import Outcome, ending_of

_LOG = logging.getLogger(__name__)
_FAILURES = (ExitCode.USAGE, ExitCode.ERROR)


@dataclass(frozen=True)
class Heartbeat:
    """What the file holds; times are ISO 8601 in UTC.

    Args:
        slot: Schedule slot of the last run that started.
        last_start: When it started.
        ended: Whether it has ended; one that was killed never does.
        last_end: When a run ended last, or None.
        exit_code: What that one ended with, or None.
        result: Its message.
        next_expected: When the next run should have started at the latest, or None where that was not configured.
    """

    slot: str
    last_start: str
    ended: bool
    last_end: str | None
    exit_code: int | None
    result: str
    next_expected: str | None


@dataclass(frozen=True)
class Status:
    """Whether a registered model's runs are as they should be.

    Args:
        message: One line: what is wrong, or that nothing is.
        exit_code: 0 if nothing is; 10 if a run is missing or failed; 11 if none ever started.
        heartbeat: The file, if there is one.
        lock: Who holds the lock in the folder, or None.
        database_lock: Who holds the lock in the tracking database, alive or not; None also if that was not asked.
    """

    message: str
    exit_code: ExitCode
    heartbeat: Heartbeat | None
    lock: str | None
    database_lock: str | None = None

    def to_json(self) -> dict[str, JSON]:
        return {**asdict(self), "exit_code": int(self.exit_code)}

    def render(self) -> str:
        """Return one line for each finding, and the message."""
        rows = {"lock": self.lock or "free"}
        if (beat := self.heartbeat) is not None:
            ended = f"{beat.last_end}, exit {beat.exit_code}: {beat.result}" if beat.last_end else "never"
            slot = f", slot {beat.slot}" if beat.slot else ""
            rows = {"last start": f"{beat.last_start}{slot}", "last end": ended, **rows}
            rows["next by"] = beat.next_expected or "not configured (notify.expect_every_hours)"
        if self.database_lock is not None:
            rows["database"] = f"locked by {self.database_lock}"
        return "\n".join([*(f"{name:<12}{text}" for name, text in rows.items()), "", self.message])


def heartbeat_file(runs: Path, name: str) -> Path:
    """Return the file of a registered model in the folder of all runs."""
    return runs / f"{name}.heartbeat.json"


def beating(config: RunConfig, work: Callable[[], Outcome]) -> Outcome:
    """Do a run's work; the heartbeat says that it started, and how it ended. The caller holds the lock.

    Raises:
        StorageError: If the start can't be written. An end that can't is a warning, and is missed by the alarm.
    """
    path = heartbeat_file(Path(config.output_dir), config.registry.name)
    now, hours = datetime.now(UTC), config.notify.expect_every_hours
    expected = None if hours is None else _iso(now + timedelta(hours=hours))
    try:
        before = _read(path)
    except DataError as error:
        _LOG.warning("%s", error)
        before = None
    beat = Heartbeat(config.slot, _iso(now), False, None, None, "", expected)
    if before is not None:
        beat = replace(beat, last_end=before.last_end, exit_code=before.exit_code, result=before.result)
    write_json(path, asdict(beat))
    try:
        outcome = work()
    except Exception as error:
        _end(path, beat, *ending_of(error))
        raise
    _end(path, beat, outcome.message, outcome.exit_code)
    return outcome


def status(runs: Path, name: str, *, max_age: timedelta | None = None, tracking_uri: str | None = None) -> Status:
    """Say whether the runs of a registered model start, and end, as they should.

    Args:
        runs: Folder of all runs.
        name: Registered model.
        max_age: The last run must have started within this time; None goes by the time that was configured.
        tracking_uri: Tracking URI, to say also who holds the lock in its database; None does not ask.

    Raises:
        DataError: If the file is damaged.
        RegistryError: If the database can't be read.
    """
    database_lock = None if tracking_uri is None else lease_holder(tracking_uri, name)
    found = _status(runs, name, max_age)
    return replace(found, database_lock=database_lock)


def _status(runs: Path, name: str, max_age: timedelta | None) -> Status:
    beat, lock = _read(heartbeat_file(runs, name)), lock_holder(runs, name)
    if beat is None:
        return Status(f"{name}: no run ever started in {runs}", ExitCode.NOT_ENOUGH_EVIDENCE, None, lock)
    now, started = datetime.now(UTC), datetime.fromisoformat(beat.last_start)
    limit = None if beat.next_expected is None else datetime.fromisoformat(beat.next_expected)
    limit = started + max_age if max_age is not None else limit
    wrong = None
    if started > now + timedelta(minutes=1):
        wrong = "the last start lies in the future; the clock was moved"
    elif limit is not None and now > limit:
        wrong = f"a run is overdue: none has started since {beat.last_start}"
    elif not beat.ended and lock is None:
        wrong = f"the run that started {beat.last_start} was killed; the same command goes on with it"
    elif beat.ended and beat.exit_code in _FAILURES:
        wrong = f"the last run failed: {beat.result}"
    if wrong is not None:
        return Status(f"{name}: {wrong}", ExitCode.GATE_FAILED, beat, lock)
    return Status(f"{name}: {'in time' if beat.ended else 'at work'}", ExitCode.PASSED, beat, lock)


def _end(path: Path, beat: Heartbeat, message: str, code: ExitCode) -> None:
    end = replace(beat, ended=True, last_end=_iso(datetime.now(UTC)), exit_code=int(code), result=message)
    try:
        write_json(path, asdict(end))
    except SparsegateError as error:  # how the run ended stands, whether or not the alarm hears of it
        _LOG.warning("the heartbeat was not written: %s", error)


def _read(path: Path) -> Heartbeat | None:
    if not path.exists():
        return None
    try:
        return Heartbeat(**read_json(path))
    except TypeError:
        raise DataError(f"{path} is not a heartbeat; the next run writes it anew") from None


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
