"""Every error a user can meet, with the exit code it ends a command with."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """Exit codes of every verb."""

    PASSED = 0
    USAGE = 2
    GATE_FAILED = 10
    NOT_ENOUGH_EVIDENCE = 11
    ERROR = 20
    NOTHING_TO_DO = 30


class SparsegateError(Exception):
    """Base of all errors raised on purpose; the message is written for the user."""

    exit_code: ClassVar[ExitCode] = ExitCode.ERROR


class UsageError(SparsegateError, ValueError):
    """What the user gave cannot be used; nothing was written."""

    exit_code: ClassVar[ExitCode] = ExitCode.USAGE


class ConfigError(UsageError):
    """One or more problems in a configuration or policy, reported together.

    Args:
        problems: One line each: where, what, rule, value, fix.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class DataError(UsageError):
    """A data file is missing, unreadable or does not have the promised shape."""


class MissingColumnError(DataError):
    """A data file lacks a column that was asked for.

    Args:
        column: The column.
        message: Says which file, and what its columns are.
    """

    def __init__(self, column: str, message: str) -> None:
        super().__init__(message)
        self.column = column


class ModelError(UsageError):
    """A base model can't be found, fetched or loaded."""


class TrackingError(UsageError):
    """The MLflow tracking server can't be reached or refuses; found before training starts."""


class DeltaError(UsageError):
    """A delta file is damaged, or does not belong to the model it is applied to."""


class RegistryError(SparsegateError):
    """MLflow failed after the run had started; worth a retry."""


class StorageError(SparsegateError):
    """A disk is full; worth a retry once there is space."""


class LockedError(SparsegateError):
    """Another run holds the lock."""

    exit_code: ClassVar[ExitCode] = ExitCode.NOTHING_TO_DO


class NothingToDoError(SparsegateError):
    """The same run is complete already, or what should have started one did not happen."""

    exit_code: ClassVar[ExitCode] = ExitCode.NOTHING_TO_DO


class NotHereError(ModelError):
    """A base model would have to be fetched first, and must not be."""


class MissingEvidenceError(SparsegateError):
    """A gate was asked to judge without the file it judges from; ends as INSUFFICIENT."""

    exit_code: ClassVar[ExitCode] = ExitCode.NOT_ENOUGH_EVIDENCE


class JudgeError(SparsegateError):
    """A judge could not be asked; the gate that needs it ends as ERROR. Worth a retry."""


class EvidenceError(SparsegateError):
    """A version's evidence is missing, damaged, of another version, or does not say that every gate passed."""

    exit_code: ClassVar[ExitCode] = ExitCode.GATE_FAILED


class ServingError(SparsegateError):
    """A new champion can't be taken up by a running process; the one before goes on answering."""


def is_full(error: OSError) -> bool:
    """Say whether the operating system refused to write for want of space (disk, quota or largest file)."""
    return error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'? choices: ..."`` for an unknown name.

    Example:
        >>> did_you_mean("fischer", ["fisher", "random"])
        "; did you mean 'fisher'? choices: fisher, random"
    """
    known = sorted(choices)
    close = get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"; did you mean '{close[0]}'?" if close else ";"
    return f"{hint} choices: {', '.join(known)}"
