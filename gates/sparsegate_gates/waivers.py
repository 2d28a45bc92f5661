"""May a gate that did not pass be passed over, this once?

A waiver is a file signed with the key of an approver whom the policy lists. It holds for one gate, for exactly what
that gate found about one candidate, under one policy, until a day. It is never for the integrity gate or for an ERROR.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsegate.contracts import GateResult, Verdict, Waiver, canonical_json
from sparsegate.errors import UsageError
from sparsegate.files import read_json, sha256_bytes, write_json
from sparsegate.signing import key_id, sign, verify
from sparsegate_gates.policy import Policy

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

NEVER_WAIVED = frozenset({"integrity"})
# a signature over a waiver must not be one over anything else
_DOMAIN = b"sparsegate waiver 1\n"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class WaiverRules:
    """What a waiver is held against.

    Args:
        policy: The policy; its approvers may sign.
        author: Who made the run.
        subject: Returns the digest of what a result is about, hex, or None if the gate has judged nothing.
        today: The day on which the waiver must hold.
    """

    policy: Policy
    author: str
    subject: Callable[[GateResult], str | None]
    today: date

    def problem_of(self, waiver: Waiver, result: GateResult) -> str | None:
        """Say why a waiver can't hold for a result, its signature aside; None if it can."""
        subject = self.subject(result)
        approvers = ", ".join(sorted(self.policy.approvers)) or "nobody"
        day = _day(waiver.expires)
        rules: list[tuple[bool, str]] = [
            (result.gate in NEVER_WAIVED, f"the gate '{result.gate}' is never waived"),
            (result.measured is Verdict.ERROR, "an ERROR is never waived; mend what its log names and judge again"),
            (result.measured is Verdict.PASS, "the gate has passed; there is nothing to waive"),
            (waiver.gate != result.gate, f"it was signed for the gate '{waiver.gate}'"),
            (subject is None, "the gate has not judged a candidate"),
            (not result.was_run, "it was not run, so there is nothing to accept; let 'sparsegate gate' ask it first"),
            (waiver.subject_sha256 != subject, "it was signed for another candidate or another result"),
            (waiver.policy_sha256 != self.policy.sha256, "it was signed for another policy"),
            (not self.author, "the run does not say who made it; set SPARSEGATE_ACTOR and run again"),
            (
                waiver.author != self.author,
                f"it names '{waiver.author}' as author, the run was made by '{self.author}'",
            ),
            (_same(waiver.approver, self.author), f"'{waiver.approver}' made the run; somebody else must approve"),
            (
                waiver.approver not in self.policy.approvers,
                f"the policy lists no key of '{waiver.approver}' (approvers: {approvers})",
            ),
            (not waiver.reason.strip(), "it gives no reason"),
            (day is None, f"expires must be a day such as 2026-12-31, got '{waiver.expires}'"),
            (day is not None and day < self.today, f"it expired on {waiver.expires}"),
        ]
        return next((text for broken, text in rules if broken), None)


def result_digest(result: GateResult, *about: str) -> str:
    """Return the digest of what a gate found, and of what it was about, hex."""
    return sha256_bytes(canonical_json([*about, result.gate, [asdict(check) for check in result.checks]]).encode())


def write_waiver(
    folder: Path, waiver: Waiver, result: GateResult, *, key: Ed25519PrivateKey, rules: WaiverRules
) -> Path:
    """Sign a waiver and leave it as ``GATE.json`` in a folder.

    Raises:
        UsageError: If it could not hold, or the key is not the approver's.
    """
    problem = rules.problem_of(waiver, result)
    if problem is None and key_id(key.public_key()) != key_id(rules.policy.approvers[waiver.approver]):
        problem = f"the key given is not the one that the policy lists for '{waiver.approver}'"
    if problem:
        raise UsageError(f"can't waive {result.gate}: {problem}")
    path = folder / f"{waiver.gate}.json"
    signature = base64.b64encode(sign(key, _payload(waiver))).decode()
    write_json(path, {"waiver": asdict(waiver), "key_id": key_id(key.public_key()), "signature": signature})
    return path


def apply_waivers(results: Sequence[GateResult], folder: Path, rules: WaiverRules) -> tuple[GateResult, ...]:
    """Return the results with the waivers that hold; one that does not is named in the log, and changes nothing.

    Args:
        results: What the gates found; waivers they carry are dropped and looked up again.
        folder: Folder of waiver files.
        rules: What a waiver is held against.
    """
    applied: list[GateResult] = []
    for result in results:
        path = folder / f"{result.gate}.json"
        waiver: Waiver | None = None
        if path.is_file() and result.measured is not Verdict.PASS:
            try:
                waiver = _read_waiver(path, result, rules)
            except UsageError as error:
                _LOG.warning("%s", error)
        applied.append(replace(result, waiver=waiver))
    return tuple(applied)


def _read_waiver(path: Path, result: GateResult, rules: WaiverRules) -> Waiver:
    """Read a waiver that holds for a result.

    Raises:
        UsageError: If it is no waiver, is not signed by the approver it names, or does not hold.
    """
    data = read_json(path)
    fields = data.get("waiver") if isinstance(data, Mapping) else None
    if not isinstance(fields, Mapping) or not all(isinstance(value, str) for value in fields.values()):
        raise UsageError(f"{path} is refused: it is not a waiver")
    try:
        waiver = Waiver(**fields)
    except TypeError as error:
        raise UsageError(f"{path} is refused: it is not a waiver: {error}") from None
    problem = rules.problem_of(waiver, result)
    if problem is None and not _is_signed(waiver, data.get("signature"), rules.policy):
        problem = f"it is not signed by '{waiver.approver}', or was edited after signing"
    if problem:
        raise UsageError(f"{path} is refused: {problem}")
    return waiver


def _is_signed(waiver: Waiver, signature: Any, policy: Policy) -> bool:
    try:
        found = base64.b64decode(signature, validate=True)
    except (ValueError, TypeError):
        return False
    return verify(policy.approvers[waiver.approver], _payload(waiver), found)


def _payload(waiver: Waiver) -> bytes:
    return _DOMAIN + canonical_json(asdict(waiver)).encode()


def _same(name: str, other: str) -> bool:
    return name.strip().casefold() == other.strip().casefold()


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None
