"""Does the registry hold what was judged, and did it pass? Answered from the registry's bytes; tags are never proof."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sparsegate.contracts import JSON, Verdict, canonical_json
from sparsegate.errors import DataError, DeltaError, EvidenceError, ExitCode, UsageError
from sparsegate.files import sha256_bytes, sha256_file
from sparsegate.registry.envelope import Envelope, unseal
from sparsegate.registry.package import (
    BOM_FILE,
    CARD_FILE,
    DELTA_FILE,
    EVIDENCE_FILE,
    EVIDENCE_TYPE,
    SPEC_FILE,
    read_package,
)
from sparsegate.registry.promotion import EVIDENCE_TAG, RUN_KEY_TAG
from sparsegate.registry.pyfunc import PACKAGE_PATH, SERVING_CODE
from sparsegate.registry.versions import (
    StoredVersion,
    aliased_version,
    download_model,
    is_quarantined,
    list_versions,
    read_evidence,
)
from sparsegate.reports.model import GateReport
from sparsegate.signing import key_id

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_FILES = {
    DELTA_FILE: f"{PACKAGE_PATH}/{DELTA_FILE}",
    SPEC_FILE: f"{PACKAGE_PATH}/{SPEC_FILE}",
    CARD_FILE: f"{PACKAGE_PATH}/{CARD_FILE}",
    BOM_FILE: f"{PACKAGE_PATH}/{BOM_FILE}",
    SERVING_CODE.name: SERVING_CODE.name,
}
_ALWAYS_UNPROVED = (
    "the base model's files: they are checked by digest when the version is loaded",
    "MLflow's own files of the version (MLmodel, requirements.txt and the like): MLflow writes them after sealing",
)


@dataclass
class Verification:
    """What was found out about a version.

    Args:
        name: Registered model.
        version: Its version.
        proved: What was checked and holds.
        unproved: What could not be checked.
        failed: What does not hold; one line is enough to refuse the version.
        evidence: The evidence, where it could be read.
        evidence_sha256: Digest of the bytes it was read from.
        package: The serving folder that was checked, where it was to be kept.
    """

    name: str
    version: int
    proved: list[str] = field(default_factory=list)
    unproved: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    evidence: dict[str, JSON] = field(default_factory=dict, repr=False)
    evidence_sha256: str = ""
    package: Path | None = field(default=None, repr=False)

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.GATE_FAILED if self.failed or not self.proved else ExitCode.PASSED

    def require(self, doing: str) -> None:
        """Refuse to go on unless the version holds.

        Raises:
            EvidenceError: With the first thing that does not hold.
        """
        if self.exit_code is not ExitCode.PASSED:
            why = self.failed[0] if self.failed else "nothing could be proved"
            raise EvidenceError(f"{self.name} version {self.version} can't be {doing}: {why}; no alias was moved")

    def to_json(self) -> dict[str, JSON]:
        found = asdict(self)
        del found["evidence"], found["evidence_sha256"], found["package"]
        return {**found, "verified": self.exit_code is ExitCode.PASSED}

    def render(self) -> str:
        """Return one line for each finding, and the result."""
        parts = (("proved", self.proved), ("NOT PROVED", self.unproved), ("FAILED", self.failed))
        lines = [f"{word:<12}{line}" for word, found in parts for line in found]
        result = "verified" if self.exit_code is ExitCode.PASSED else "NOT VERIFIED"
        return "\n".join([*lines, "", f"{result}: {self.name} version {self.version}"])


def find_version(target: str, tracking_uri: str) -> tuple[str, int]:
    """Return name and version of ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.

    Raises:
        UsageError: If it is neither, or there is no such model or alias.
        RegistryError: If MLflow fails.
    """
    found = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/([1-9][0-9]*))", target)
    if found is None:
        raise UsageError(f"'{target}' names no version; give models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, number = found.groups()
    if number is not None:
        return name, int(number)
    version = aliased_version(tracking_uri, name, alias)
    if version is None:
        raise UsageError(f"{name} has no alias '{alias}'; 'sparsegate history {name}' shows what there is")
    return name, version


def verify_version(
    tracking_uri: str,
    name: str,
    number: int,
    *,
    public_key: Ed25519PublicKey | None,
    download_to: Path | None = None,
) -> Verification:
    """Check a version from the registry's bytes.

    Args:
        tracking_uri: Tracking URI.
        name: Registered model.
        number: The version.
        public_key: Key that must have signed the evidence; None checks everything but the signature, and says so.
        download_to: Folder that keeps the files that were checked; None keeps none.

    Raises:
        UsageError: If there is no such version.
        RegistryError: If MLflow fails.
    """
    versions = {version.number: version for version in list_versions(tracking_uri, name)}
    if number not in versions:
        raise UsageError(f"{name} has no version {number}; it has {', '.join(map(str, sorted(versions))) or 'none'}")
    found = Verification(name, number)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = download_model(tracking_uri, name, number, to=download_to or Path(scratch))
            envelope = _open(folder, versions[number], public_key, found)
        except EvidenceError as error:
            found.failed.append(str(error))
            return found
        found.package = None if download_to is None else folder / PACKAGE_PATH
        found.evidence = dict(envelope.statement.predicate)
        try:
            _check_belongs(versions, number, name, found)
            _check_files(folder, envelope, found)
            _check_verdict(found)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            found.failed.append(f"the evidence does not have the promised form: {type(error).__name__}: {error}")
    _check_chain(tracking_uri, versions, found)
    if is_quarantined(tracking_uri, name, envelope.statement.subjects.get(DELTA_FILE, "")):
        found.failed.append("its delta is in quarantine")
    found.unproved += _ALWAYS_UNPROVED
    return found


def _open(folder: Path, version: StoredVersion, key: Ed25519PublicKey | None, found: Verification) -> Envelope:
    """Read the evidence and check who signed it.

    Raises:
        EvidenceError: If there is none, or it can't be trusted; nothing else is worth a look then.
    """
    path = folder / PACKAGE_PATH / EVIDENCE_FILE
    if not path.is_file():
        raise EvidenceError(f"it has no evidence ({EVIDENCE_FILE} is missing)")
    data = path.read_bytes()
    found.evidence_sha256 = sha256_bytes(data)
    envelope = unseal(data, predicate_type=EVIDENCE_TYPE)
    signing, signers = envelope.statement.predicate.get("signing"), [signer for signer, _ in envelope.signatures]
    if key is not None:
        wanted = key_id(key)
        if not signers:
            raise EvidenceError(f"the evidence is UNSIGNED; key {wanted[:16]} should have signed it")
        if not envelope.is_signed_by(key):
            if wanted in signers:
                raise EvidenceError(f"the evidence was changed after key {wanted[:16]} signed it")
            raise EvidenceError(f"the evidence is signed by another key, {signers[0][:16]}, not by {wanted[:16]}")
    expected = {"mode": "ed25519", "key_id": signers[0]} if signers else {"mode": "unsigned"}
    if signing != expected:
        raise EvidenceError("its signature was taken away or replaced: the evidence names another way of signing")
    if version.tags.get(EVIDENCE_TAG) != found.evidence_sha256:
        raise EvidenceError(f"the evidence is not the one that was registered: tag {EVIDENCE_TAG} has another digest")
    if key is not None:
        found.proved.append(f"signature: the evidence was signed by key {key_id(key)[:16]} and not changed since")
    elif signers:
        found.unproved.append(f"signature: give --public_key to check that key {signers[0][:16]} signed the evidence")
    else:
        found.unproved.append("who made it: the evidence is UNSIGNED, anyone who can write the registry can forge it")
    return envelope


def _check_belongs(versions: dict[int, StoredVersion], number: int, name: str, found: Verification) -> None:
    evidence, version = found.evidence, versions[number]
    if evidence.get("name") != name:
        found.failed.append(f"the evidence is of another model, {evidence.get('name')!r}")
    elif (evidence.get("run_key"), evidence.get("run_id")) != (version.tags.get(RUN_KEY_TAG), version.run_id):
        found.failed.append(f"the evidence is of another run, {evidence.get('run_id')}; it made another version")
    elif copies := [
        other.number
        for other in versions.values()
        if other.number < number and other.tags.get(EVIDENCE_TAG) == version.tags.get(EVIDENCE_TAG)
    ]:
        found.failed.append(f"the evidence is a replay of version {min(copies)}'s")
    else:
        found.proved.append(f"identity: the evidence is of {name}, run {str(evidence['run_key'])[:16]}")


def _check_files(folder: Path, envelope: Envelope, found: Verification) -> None:
    """Compare the files with the subjects of the evidence, and the package with itself."""
    subjects = envelope.statement.subjects
    if set(subjects) != set(_FILES):
        found.failed.append(f"the evidence must be of {', '.join(_FILES)}; it is of {', '.join(subjects) or 'nothing'}")
        return
    wrong = [name for name, path in _FILES.items() if not _is(folder / path, subjects[name])]
    found.failed += [f"{name} is missing or is not the file that was judged" for name in wrong]
    if wrong:
        return
    try:
        spec = read_package(folder / PACKAGE_PATH)
    except (DataError, DeltaError) as error:
        found.failed.append(str(error))
        return
    if spec.base_digest != found.evidence["base"]["digest"]:
        found.failed.append("the spec names another base model than the evidence")
        return
    found.proved.append(f"files: {', '.join(_FILES)} are byte for byte those that were judged")


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and not path.is_symlink() and sha256_file(path) == digest


def _check_verdict(found: Verification) -> None:
    """Derive the verdict again from the checks of each gate, and compare the gates with the policy."""
    policy, report = found.evidence["policy"], GateReport.from_json(found.evidence["report"])
    gates = {name: thresholds for name, thresholds in policy["decides"].items() if name != "approvers"}
    waivers = [result.waiver for result in report.results if result.waiver is not None]
    strangers = {waiver.approver for waiver in waivers} - policy["decides"].get("approvers", {}).keys()
    if sha256_bytes(canonical_json(policy["decides"]).encode()) != policy["sha256"]:
        found.failed.append(f"policy '{policy['name']}' is not the one its digest says")
    elif report.policy_sha256 != policy["sha256"] or sorted(report.planned) != sorted(gates):
        found.failed.append(f"the gates that answered are not those of policy '{policy['name']}'")
    elif strangers:
        found.failed.append(f"a waiver is by {min(strangers)}, whom policy '{policy['name']}' lists as no approver")
    elif not report.verdict.releases:
        reasons = [
            *report.problems,
            *(f"{r.gate}: {r.reason}" for r in report.results if not r.verdict.releases),
        ]
        found.failed.append(f"the verdict is {report.verdict}: {reasons[0]}")
    else:
        passed = sum(result.verdict is Verdict.PASS for result in report.results)
        found.proved.append(f"verdict: {passed} of {len(report.planned)} gates of policy '{policy['name']}' passed")
        found.proved += [f"waiver: {w.approver} let {w.gate} pass until {w.expires}: {w.reason}" for w in waivers]
        found.unproved += [f"waiver of {w.gate}: its signature was checked when the version was made" for w in waivers]


def _check_chain(tracking_uri: str, versions: dict[int, StoredVersion], found: Verification) -> None:
    """Follow the digests of earlier evidence: whoever signed the newest has thereby signed them all."""
    number, links = found.version, 0
    evidence: Mapping[str, JSON] = found.evidence
    while (previous := evidence.get("previous")) is not None:
        try:
            earlier, digest = int(previous["version"]), str(previous["evidence_sha256"])
        except (KeyError, TypeError, ValueError):
            found.failed.append(f"chain: the evidence of version {number} names no proper predecessor")
            return
        if earlier >= number:
            found.failed.append(f"chain: version {number} names version {earlier} as the one before it")
            return
        if earlier not in versions:
            found.unproved.append(f"chain: version {earlier} was deleted; evidence before version {number} is unknown")
            return
        try:
            data = read_evidence(tracking_uri, found.name, earlier)
            if sha256_bytes(data) != digest:
                raise EvidenceError(f"the evidence of version {earlier} is not the one that version {number} follows")
            evidence = unseal(data, predicate_type=EVIDENCE_TYPE).statement.predicate
        except EvidenceError as error:
            found.failed.append(f"chain: {error}")
            return
        number, links = earlier, links + 1
    found.proved.append(
        f"chain: follows {links} earlier version(s) without a gap" if links else "chain: it is the first"
    )
