"""The bill of materials of a version follows CycloneDX 1.6 and says what the evidence says."""

import json

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from sparsegate.registry.envelope import unseal
from sparsegate.registry.package import EVIDENCE_TYPE
from sparsegate.reports.bom import to_bom

SCHEMA = JsonStrictValidator(SchemaVersion.V1_6)


def test_it_lies_in_the_version_and_is_valid(registry):
    registry.add("k1")
    text = (registry.package(1) / "bom.cdx.json").read_text(encoding="utf-8")
    assert SCHEMA.validate_str(text) is None
    assert SCHEMA.validate_str(text.replace('"supervised"', '"guessed"')) is not None, "the schema is asked"
    evidence = unseal((registry.package(1) / "evidence.dsse.json").read_bytes(), predicate_type=EVIDENCE_TYPE)
    assert text == to_bom(evidence.statement.predicate), "it is made from the evidence and nothing else"


def test_it_names_model_base_data_packages_and_what_was_measured(registry):
    registry.add("k1")
    bom = json.loads((registry.package(1) / "bom.cdx.json").read_text(encoding="utf-8"))
    model = bom["metadata"]["component"]
    assert (model["type"], model["name"], model["version"]) == ("machine-learning-model", "desk", "k1")
    parts = {part["bom-ref"]: part for part in bom["components"]}
    assert set(parts) == {f"base:{'b' * 16}", "data:evaluation", "pkg:pypi/torch@2"}
    assert parts["data:evaluation"]["hashes"] == [{"alg": "SHA-256", "content": "e" * 64}]
    needed = next(entry for entry in bom["dependencies"] if entry["ref"] == model["bom-ref"])["dependsOn"]
    assert set(needed) == set(parts)
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert {"type": "accuracy", "value": "0.9", "slice": "evaluation set, candidate"} in metrics
    assert {"type": "gate accuracy, PASS", "value": "0.9", "slice": "accuracy"} in metrics


def test_each_run_has_a_serial_number_of_its_own(registry):
    for key in ("k1", "k2"):
        registry.add(key)
    first, second = (json.loads((registry.package(number) / "bom.cdx.json").read_text()) for number in (1, 2))
    assert first["serialNumber"] != second["serialNumber"]


def test_an_environment_with_local_versions_and_missing_packages_is_valid_too(registry):
    registry.add("k1")
    evidence = unseal((registry.package(1) / "evidence.dsse.json").read_bytes(), predicate_type=EVIDENCE_TYPE)
    environment = {"torch": "2.13.0+cpu", "gguf": "not installed"}
    text = to_bom({**evidence.statement.predicate, "environment": environment})
    assert SCHEMA.validate_str(text) is None
    assert "pkg:pypi/torch@2.13.0%2Bcpu" in text
    assert "gguf" not in text
