"""The evidence of a candidate: one object with everything its verdict rests on, sealed beside the delta."""

from __future__ import annotations

import logging
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sparsegate.contracts import JSON, canonical_json
from sparsegate.errors import EvidenceError
from sparsegate.files import read_json, sha256_bytes, sha256_file, write_text
from sparsegate.registry.envelope import Statement, seal
from sparsegate.registry.package import BOM_FILE, CARD_FILE, DELTA_FILE, EVIDENCE_FILE, EVIDENCE_TYPE, SPEC_FILE
from sparsegate.registry.promotion import EVIDENCE_TAG, has_versions
from sparsegate.registry.pyfunc import SERVING_CODE
from sparsegate.registry.versions import list_versions, read_evidence
from sparsegate.reports.bom import to_bom
from sparsegate.reports.model import GateReport
from sparsegate.reports.model_card import to_description, to_model_card
from sparsegate.signing import key_id
from sparsegate.workflow.identity import actor
from sparsegate.workflow.run import Run
from sparsegate_gates.judges import judge_digest, load_judge
from sparsegate_gates.policy import Policy

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from sparsegate.sparse.delta import Delta

_LOG = logging.getLogger(__name__)


def gather_evidence(
    run: Run,
    report: GateReport,
    *,
    run_id: str,
    models: JSON,
    attempt: int,
    champion: int | None,
    previous: JSON,
) -> dict[str, JSON]:
    """Return everything that the verdict of a run's candidate rests on.

    Args:
        run: The run.
        report: What the gates said.
        run_id: Its run in MLflow.
        models: Role to figures of the evaluated models.
        attempt: Which candidate this is of those judged by the same evaluation set.
        champion: Version it was judged against, or None.
        previous: Version and evidence digest of the version before it, or None.
    """
    from sparsegate.sparse.delta import read_delta

    manifest, registry, delta = run.manifest, run.config.registry, read_delta(run.delta)
    return {
        "name": registry.name,
        "run_id": run_id,
        "run_key": manifest.run_key,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "actor": actor(registry),
        "triggers": list(manifest.triggers),
        "code_version": manifest.code_version,
        "environment": dict(manifest.environment),
        "config_sha256": manifest.config_sha256,
        "training": asdict(run.config.training.resolved()),
        "task": run.config.data.task,
        "base": {"source": run.base.source, "digest": run.base.digest},
        "data_sha256": dict(manifest.data_sha256),
        "delta_sha256": sha256_file(run.delta),
        "mask_sha256": mask_digest(delta),
        "plan": delta.manifest["plan"],
        "policy": {"name": run.policy.name, "sha256": run.policy.sha256, "decides": run.policy.decides()},
        "judges": judge_digests(run.policy, report),
        "items_sha256": {path.name: sha256_file(path) for path in sorted((run.folder / "evaluate").glob("*.jsonl"))},
        "report": report.to_json(),
        "models": models,
        "cost": read_json(run.cost),
        "champion": champion,
        "attempt": attempt,
        "previous": previous,
    }


def seal_evidence(package: Path, evidence: dict[str, JSON], key: Ed25519PrivateKey | None) -> str:
    """Write model card, bill of materials and evidence into a package whose delta and spec are in place.

    Returns:
        What the registry shows with the version.
    """
    if key is None:
        _LOG.warning(
            "UNSIGNED evidence: nobody can prove who made this version;"
            " set registry.signing_key or SPARSEGATE_SIGNING_KEY to sign"
        )
    signing = {"mode": "unsigned"} if key is None else {"mode": "ed25519", "key_id": key_id(key.public_key())}
    predicate = {**evidence, "signing": signing}
    write_text(package / CARD_FILE, to_model_card(predicate))
    write_text(package / BOM_FILE, to_bom(predicate))
    subjects = {file: sha256_file(package / file) for file in (DELTA_FILE, SPEC_FILE, CARD_FILE, BOM_FILE)}
    subjects[SERVING_CODE.name] = sha256_file(SERVING_CODE)
    write_text(package / EVIDENCE_FILE, seal(Statement(subjects, EVIDENCE_TYPE, predicate), key))
    return to_description(predicate)


def previous_evidence(uri: str, name: str) -> JSON:
    """Return number and evidence digest of the newest version that has evidence, or None: the chain's last link.

    Raises:
        RegistryError: If MLflow fails.
    """
    for version in list_versions(uri, name) if has_versions(uri, name) else ():
        if EVIDENCE_TAG not in version.tags:
            continue
        try:
            return {
                "version": version.number,
                "evidence_sha256": sha256_bytes(read_evidence(uri, name, version.number)),
            }
        except EvidenceError as error:
            _LOG.warning("the chain of evidence skips a version: %s", error)
    return None


def judge_digests(policy: Policy, report: GateReport) -> dict[str, JSON]:
    """Return, for each gate that asks a judge, its name and its digest.

    Raises:
        EvidenceError: If a gate's answers were judged by another judge than the one that its name stands for now.
    """
    found: dict[str, JSON] = {}
    for gate, settings in policy.gates.items():
        name = getattr(settings, "judge", None)
        if name is None:
            continue
        digest = judge_digest(load_judge(name, getattr(settings, "judge_labels", None)))
        used = [result.details.get("judge_sha256", digest) for result in report.results if result.gate == gate]
        if any(other != digest for other in used):
            raise EvidenceError(f"{gate} was judged by judge '{name}', which has changed since; judge the run again")
        found[gate] = {"name": name, "sha256": digest}
    return found


def mask_digest(delta: Delta) -> str:
    """Return the digest of which entries a delta changes, whatever their values."""
    mask = {
        name: {"kind": entry.kind, "shape": list(entry.shape), "ids": sha256_bytes(entry.ids.numpy().tobytes())}
        for name, entry in delta.entries.items()
    }
    return sha256_bytes(canonical_json(mask).encode())
