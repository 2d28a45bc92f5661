"""Moving the champion: promote, roll back, quarantine; each verified first and recorded with who and why."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from sparsegate.config import RegistryConfig
from sparsegate.contracts import JSON
from sparsegate.errors import EvidenceError, ExitCode, UsageError
from sparsegate.registry.envelope import Statement, seal, unseal
from sparsegate.registry.lease import fence
from sparsegate.registry.package import DELTA_FILE, EVIDENCE_FILE, EVIDENCE_TYPE
from sparsegate.registry.promotion import DELTA_TAG
from sparsegate.registry.promotion import promote as move_alias
from sparsegate.registry.versions import (
    aliased_version,
    list_versions,
    quarantine,
    read_events,
    read_evidence,
    record_event,
)
from sparsegate.workflow.identity import actor, public_key_of, signing_key
from sparsegate.workflow.lock import registry_lock
from sparsegate.workflow.verification import Verification, find_version, verify_version

EVENT_TYPE = "urn:sparsegate:event:v1"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Change:
    """What a verb did to the champion.

    Args:
        message: One line: what happened.
        name: Registered model.
        version: The champion now.
        replaced: The champion before, or None.
        quarantined: Digests of the deltas that were quarantined.
    """

    message: str
    name: str
    version: int
    replaced: int | None
    quarantined: tuple[str, ...] = ()

    exit_code = ExitCode.PASSED

    def to_json(self) -> dict[str, JSON]:
        return asdict(self)

    def render(self) -> str:
        return self.message


def verify(target: str, *, tracking_uri: str, public_key: Path | None) -> Verification:
    """Check a version; nothing is changed.

    Args:
        target: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        tracking_uri: Tracking URI.
        public_key: PEM file of the key that must have signed; None takes it from the environment's signing key.
    """
    key = public_key_of(public_key)
    name, number = find_version(target, tracking_uri)
    return verify_version(tracking_uri, name, number, public_key=key)


def promote(registry: RegistryConfig, number: int, *, reason: str, runs: Path) -> Change:
    """Make a registered version the champion, if it holds and was judged against the present one.

    Args:
        registry: Registered model, where it is, and who acts.
        number: The version.
        reason: Why, for the record.
        runs: Folder of the runs, where the lock is.

    Raises:
        EvidenceError: If the version does not hold.
        UsageError: If it was judged against another champion.
        LockedError: If another process is at work on this model.
    """
    with registry_lock(runs, registry):
        found = _verified(registry, number, "promoted")
        current = aliased_version(registry.tracking_uri, registry.name, registry.alias)
        judged_against = found.evidence.get("champion")
        if current == number:
            message = f"{registry.name} version {number} is {registry.alias} already"
            return Change(message, registry.name, number, number)
        if current != judged_against:
            raise UsageError(
                f"version {number} was judged against {_named(judged_against)}, and {registry.alias} is"
                f" {_named(current)}; judge it again with 'sparsegate gate', or go back with"
                f" 'sparsegate rollback {registry.name} --to N'"
            )
        _move(registry, found, "promote", current, reason)
    return Change(f"promoted: {registry.name} version {number} is now {registry.alias}", registry.name, number, current)


def promote_judged(registry: RegistryConfig, number: int, *, reason: str) -> Verification:
    """Make a version the champion for the run that made it; the caller holds the lock.

    Args:
        registry: Registered model, where it is, and who acts.
        number: The version.
        reason: Why, for the record; it names the run.

    Returns:
        What was verified, with the version's evidence.

    Raises:
        EvidenceError: If it can't be verified, or the champion is no longer the one it was judged against.
        RegistryError: If MLflow fails.
    """
    found = _verified(registry, number, "promoted")
    judged_against = found.evidence.get("champion")
    current = aliased_version(registry.tracking_uri, registry.name, registry.alias)
    if current == number:
        return found
    if current != judged_against:
        raise EvidenceError(
            f"version {number} was judged against {_named(judged_against)}, and {registry.alias} is {_named(current)},"
            " which stays; run again with another --slot to judge it anew"
        )
    _move(registry, found, "promote", current, reason, once=True)
    return found


def rollback(registry: RegistryConfig, *, to: int | None, reason: str, bad: bool, runs: Path) -> Change:
    """Make an earlier version the champion again.

    Args:
        registry: Registered model, where it is, and who acts.
        to: The version; None takes the one before the present champion.
        reason: Why, for the record.
        bad: Quarantine the delta of the version that is left: it can't be promoted again.
        runs: Folder of the runs, where the lock is.

    Raises:
        EvidenceError: If the target does not hold; nothing is changed.
        UsageError: If there is nothing to go back to.
        LockedError: If another process is at work on this model.
    """
    uri, name, alias = registry.tracking_uri, registry.name, registry.alias
    with registry_lock(runs, registry):
        current = aliased_version(uri, name, alias)
        if current is None:
            raise UsageError(f"{name} has no {alias}; there is nothing to roll back")
        target = _way_back(registry, current) if to is None else to
        if target == current:
            raise UsageError(f"{name} version {target} is {alias} already; nothing to roll back")
        found = _verified(registry, target, "rolled back to")
        digests = _delta_digests(registry, current) if bad else ()
        if found.evidence["delta_sha256"] in digests:
            raise UsageError(f"version {target} holds the same delta as version {current}, which is to be quarantined")
        for digest in digests:
            quarantine(uri, name, digest, reason=reason)
        _move(registry, found, "rollback", current, reason)
    left = f"; the delta of version {current} is in quarantine" if bad else ""
    message = f"rolled back: {name} version {target} is {alias} again, in place of version {current}{left}"
    return Change(message, name, target, current, digests)


# --- parts --------------------------------------------------------------------------------------


def _verified(registry: RegistryConfig, number: int, doing: str) -> Verification:
    key = signing_key(registry)
    public_key = None if key is None else key.public_key()
    found = verify_version(registry.tracking_uri, registry.name, number, public_key=public_key)
    found.require(doing)
    for line in found.unproved:
        if "UNSIGNED" in line:
            _LOG.warning("not proved: %s", line)
    return found


def _way_back(registry: RegistryConfig, current: int) -> int:
    previous = aliased_version(registry.tracking_uri, registry.name, f"previous_{registry.alias}")
    if previous is None:
        raise UsageError(f"{registry.name} has no previous_{registry.alias}; name the version with --to N")
    if previous > current:
        raise UsageError(
            f"{registry.name} was rolled back from version {previous} to {current} already; to go further back, or"
            " forward again, name the version with --to N"
        )
    return previous


def _delta_digests(registry: RegistryConfig, number: int) -> tuple[str, ...]:
    """Return the digests by which a version's delta is known: its tag's, and its evidence's where that can be read."""
    version = next(v for v in list_versions(registry.tracking_uri, registry.name) if v.number == number)
    digests = {version.tags.get(DELTA_TAG)}
    try:
        data = read_evidence(registry.tracking_uri, registry.name, number)
        digests.add(unseal(data, predicate_type=EVIDENCE_TYPE).statement.subjects.get(DELTA_FILE))
    except EvidenceError as error:
        _LOG.warning("quarantine goes by the tag alone: %s", error)
    known = tuple(sorted(digest for digest in digests if digest))
    if not known:
        raise EvidenceError(f"version {number} can't be quarantined: nothing tells the digest of its delta")
    return known


def _move(
    registry: RegistryConfig,
    found: Verification,
    verb: Literal["promote", "rollback"],
    current: int | None,
    reason: str,
    *,
    once: bool = False,
) -> None:
    """Record the move, then make it: no version becomes champion without a record of who and why.

    With ``once`` a record of the same move for the same reason stands for this one: its writer died before the move.
    """
    when = datetime.now(UTC).isoformat(timespec="seconds")
    uri, name, number = registry.tracking_uri, registry.name, found.version
    event = {
        "verb": verb,
        "name": name,
        "alias": registry.alias,
        "from": current,
        "to": number,
        "actor": actor(registry),
        "reason": reason,
        "when": when,
    }
    run_id = str(found.evidence["run_id"])
    if not (once and _is_recorded(uri, run_id, event)):
        evidence = {EVIDENCE_FILE: found.evidence_sha256}
        fence(name)
        sealed = seal(Statement(evidence, EVENT_TYPE, event), signing_key(registry))
        record_event(uri, run_id, when=when, verb=verb, sealed=sealed)
    move_alias(uri, name, number, registry.alias, expected=current)


def _is_recorded(uri: str, run_id: str, event: dict[str, JSON]) -> bool:
    for data in read_events(uri, run_id):
        with suppress(EvidenceError):  # a damaged record stands for nothing
            earlier = unseal(data, predicate_type=EVENT_TYPE).statement.predicate
            if {**earlier, "when": event["when"]} == event:
                return True
    return False


def _named(number: int | None) -> str:
    return "no champion" if number is None else f"version {number}"
