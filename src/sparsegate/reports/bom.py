"""The machine-learning bill of materials of a version, as CycloneDX 1.6, made from its evidence and nothing else.

Written as plain JSON: the CycloneDX library for Python knows no model cards. The tests validate it against the schema.
Source: cyclonedx.org/docs/1.6/json.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from urllib.parse import quote

from sparsegate.contracts import JSON, NOT_INSTALLED
from sparsegate.reports.model import GateReport

_NAMESPACE = uuid.UUID("5f6b1c52-2f0f-4d0c-9b0e-6d8d0a7c3e11")  # fixed: equal runs have equal serial numbers


def to_bom(evidence: Mapping[str, JSON]) -> str:
    """Return the bill of materials: the model with its card, its base, its data, and the packages it was made with.

    Args:
        evidence: The evidence of the version.
    """
    model, base = f"model:{evidence['run_key'][:16]}", f"base:{evidence['base']['digest'][:16]}"
    data = {part: f"data:{part}" for part in evidence["data_sha256"]}
    packages = {
        name: f"pkg:pypi/{name}@{quote(version)}"
        for name, version in evidence["environment"].items()
        if version != NOT_INSTALLED
    }
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, evidence['run_key'])}",
        "version": 1,
        "metadata": {
            "timestamp": evidence["created_at"],
            "tools": {
                "components": [{"type": "application", "name": "sparsegate", "version": evidence["code_version"]}]
            },
            "component": _model(evidence, model, base, data),
        },
        "components": [
            {
                "type": "machine-learning-model",
                "bom-ref": base,
                "name": evidence["base"]["source"],
                "properties": _properties({"base_digest": evidence["base"]["digest"]}),
            },
            *(
                {"type": "data", "bom-ref": data[part], "name": part, "hashes": _sha256(digest)}
                for part, digest in evidence["data_sha256"].items()
            ),
            *(
                {
                    "type": "library",
                    "bom-ref": purl,
                    "name": name,
                    "version": evidence["environment"][name],
                    "purl": purl,
                }
                for name, purl in packages.items()
            ),
        ],
        "dependencies": [
            {"ref": model, "dependsOn": [base, *data.values(), *packages.values()]},
            *({"ref": ref} for ref in (base, *data.values(), *packages.values())),
        ],
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _model(evidence: Mapping[str, JSON], model: str, base: str, data: Mapping[str, str]) -> dict[str, JSON]:
    report = GateReport.from_json(evidence["report"])
    facts = {
        "run_key": evidence["run_key"],
        "verdict": str(report.verdict),
        "policy": report.policy_name,
        "policy_sha256": report.policy_sha256,
        "config_sha256": evidence["config_sha256"],
        "mask_sha256": evidence["mask_sha256"],
        "attempt": str(evidence["attempt"]),
        "actor": evidence["actor"],
    }
    return {
        "type": "machine-learning-model",
        "bom-ref": model,
        "name": evidence["name"],
        "version": evidence["run_key"][:16],
        "description": f"{evidence['base']['source']} with a sparse delta; the hash is the delta file's",
        "hashes": _sha256(evidence["delta_sha256"]),
        "pedigree": {"ancestors": [{"type": "machine-learning-model", "name": evidence["base"]["source"]}]},
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": evidence["task"],
                "architectureFamily": "transformer",
                "datasets": [{"ref": ref} for ref in data.values()],
                "inputs": [{"format": "text/plain"}],
                "outputs": [{"format": "text/plain"}],
            },
            "quantitativeAnalysis": {"performanceMetrics": [*_figures(evidence["models"]), *_checks(report)]},
            "considerations": {
                "technicalLimitations": [
                    "The gates speak for the evaluation set, the prompts and the judges of the evidence alone."
                ]
            },
        },
        "properties": _properties(facts),
    }


def _figures(models: Mapping[str, Mapping[str, float]]) -> list[JSON]:
    return [
        {"type": name, "value": f"{value:.6g}", "slice": f"evaluation set, {role}"}
        for role, figures in models.items()
        for name, value in figures.items()
    ]


def _checks(report: GateReport) -> list[JSON]:
    """Return what each gate measured, with its interval."""
    found: list[JSON] = []
    for result in report.results:
        for check in result.checks:
            if check.observed is None:
                continue
            metric: dict[str, JSON] = {
                "type": f"gate {result.gate}, {check.verdict}",
                "value": f"{check.observed:.6g}",
                "slice": check.name,
            }
            if check.interval is not None:
                bounds = {"lowerBound": check.interval.low, "upperBound": check.interval.high}
                metric["confidenceInterval"] = {name: f"{bound:.6g}" for name, bound in bounds.items()}
            found.append(metric)
    return found


def _sha256(digest: str) -> list[JSON]:
    return [{"alg": "SHA-256", "content": digest}]


def _properties(facts: Mapping[str, str]) -> list[JSON]:
    return [{"name": f"sparsegate:{name}", "value": value} for name, value in facts.items()]
