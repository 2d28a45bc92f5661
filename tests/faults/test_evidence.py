"""Whatever is done to a registered version, verifying it says in one line what is wrong, and it is not promoted."""

import base64
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sparsegate.errors import EvidenceError
from sparsegate.registry.connection import connect
from sparsegate.registry.envelope import Statement, seal, unseal
from sparsegate.registry.package import EVIDENCE_TYPE
from sparsegate.reports.model_card import to_description
from sparsegate.workflow.evidence import judge_digests
from sparsegate_gates.judges import judge_digest, load_judge

EVIDENCE = "evidence.dsse.json"


@pytest.fixture
def keys(registry):
    return registry.key("ours")


def refused(registry, keys, version, name="desk"):
    """Verify and promote a version that does not hold; return the one line that says why."""
    before = registry.aliases(name)
    code, found = registry.verify(f"models:/{name}/{version}", "--public_key", keys[1])
    assert (code, found["verified"], len(found["failed"])) == (10, False, 1), found
    code, out, err = registry.run("promote", name, "--version", str(version), "--reason", "r", "--signing_key", keys[0])
    assert (code, out) == (10, "")
    assert f"sparsegate: {name} version {version} can't be promoted: {found['failed'][0]}; no alias was moved" in err
    assert registry.aliases(name) == before
    return found["failed"][0]


def retag(registry, version, name="desk"):
    """Let the evidence tag say what the file is now: whoever changes the file can change the tag."""
    from sparsegate.files import sha256_file

    digest = sha256_file(registry.package(version, name) / EVIDENCE)
    connect(registry.uri).set_model_version_tag(name, str(version), "sparsegate.evidence_sha256", digest)


def test_a_sound_version_is_verified_from_its_bytes(registry, keys):
    registry.add("k1", key=keys[0])
    registry.add("k2", key=keys[0])
    code, found = registry.verify("models:/desk/2", "--public_key", keys[1])
    assert (code, found["failed"]) == (0, [])
    assert [line.split(":")[0] for line in found["proved"]] == ["signature", "identity", "files", "verdict", "chain"]
    assert "1 earlier version" in found["proved"][-1]
    assert len(found["unproved"]) == 2
    card = (registry.package(2) / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "| candidate | 0.900 |" in card
    assert "UNSIGNED" not in card


def test_what_the_registry_shows_of_a_version_opens_with_accuracy_and_verdict_and_leaves_digests_out(registry):
    run, _ = registry.prepare("k1")
    evidence = unseal((run.folder / "package" / EVIDENCE).read_bytes(), predicate_type=EVIDENCE_TYPE)
    shown = to_description(evidence.statement.predicate)
    assert shown.startswith("accuracy 0.900 (base 0.100), PASS by policy policy\n\nA classification model: ")
    assert "| candidate | 0.900 |" in shown
    assert "sha256" not in shown


def test_of_a_generation_task_it_tells_the_perplexity_too(registry):
    run, _ = registry.prepare("k1")
    evidence = dict(
        unseal((run.folder / "package" / EVIDENCE).read_bytes(), predicate_type=EVIDENCE_TYPE).statement.predicate
    )
    evidence["models"] = {
        "base": {"accuracy": 0.0, "perplexity": 20.4},
        "candidate": {"accuracy": 0.1, "perplexity": 7.391},
    }
    assert to_description(evidence).startswith(
        "accuracy 0.100 and perplexity 7.39 (base 0.000 and perplexity 20.4), PASS"
    )


def test_unsigned_evidence_says_so_and_is_refused_where_a_key_is_asked_for(registry, keys):
    registry.add("k1")
    code, out, _ = registry.run("verify", "models:/desk/1")
    assert code == 0
    assert "NOT PROVED  who made it: the evidence is UNSIGNED" in out
    assert "UNSIGNED" in (registry.package(1) / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "is UNSIGNED; key" in refused(registry, keys, 1)


def test_without_a_key_signed_evidence_is_not_called_proved(registry, keys):
    registry.add("k1", key=keys[0])
    code, found = registry.verify("models:/desk/1")
    assert code == 0
    assert found["unproved"][0].startswith("signature: give --public_key")
    assert not any(line.startswith("signature") for line in found["proved"])


def test_the_key_is_also_taken_from_the_environment(registry, keys, monkeypatch):
    monkeypatch.setenv("SPARSEGATE_SIGNING_KEY", Path(keys[0]).read_text(encoding="utf-8"))
    registry.add("k1")
    code, found = registry.verify("models:/desk/1")
    assert (code, found["proved"][0].split(":")[0]) == (0, "signature")


@pytest.mark.parametrize("position", [0.2, 0.5, 0.8])
def test_a_flipped_byte_of_the_evidence_is_found(registry, keys, position):
    registry.add("k1", key=keys[0])
    path = registry.package(1) / EVIDENCE
    envelope = json.loads(path.read_text(encoding="utf-8"))
    payload = bytearray(base64.b64decode(envelope["payload"]))
    payload[int(len(payload) * position)] ^= 1
    envelope["payload"] = base64.b64encode(payload).decode()
    path.write_text(json.dumps(envelope), encoding="utf-8")
    retag(registry, 1)
    why = refused(registry, keys, 1)
    assert "was changed after key" in why or "not a sealed statement" in why


def test_a_rewritten_verdict_needs_the_key(registry, keys):
    registry.add("k1", key=keys[0])
    path = registry.package(1) / EVIDENCE
    statement = unseal(path.read_bytes(), predicate_type=EVIDENCE_TYPE).statement
    forged = {**statement.predicate, "champion": 7}
    path.write_text(
        seal(Statement(statement.subjects, EVIDENCE_TYPE, forged), Ed25519PrivateKey.generate()), encoding="utf-8"
    )
    retag(registry, 1)
    assert "is signed by another key" in refused(registry, keys, 1)


def test_a_signature_taken_away_is_found_without_any_key(registry, keys):
    registry.add("k1", key=keys[0])
    path = registry.package(1) / EVIDENCE
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "signatures": []}), encoding="utf-8")
    retag(registry, 1)
    code, found = registry.verify("models:/desk/1")
    assert code == 10
    assert "signature was taken away" in found["failed"][0]


def test_evidence_other_than_the_registered_is_found_without_any_key(registry):
    registry.add("k1")
    path = registry.package(1) / EVIDENCE
    path.write_bytes(path.read_bytes() + b" ")
    code, found = registry.verify("models:/desk/1")
    assert code == 10
    assert "not the one that was registered" in found["failed"][0]


def test_evidence_of_another_version_does_not_count(registry, keys):
    registry.add("k1", key=keys[0])
    registry.add("k2", key=keys[0])
    shutil.copyfile(registry.package(1) / EVIDENCE, registry.package(2) / EVIDENCE)
    retag(registry, 2)
    code, found = registry.verify("models:/desk/2", "--public_key", keys[1])
    assert code == 10
    assert "another run" in found["failed"][0]


def test_a_package_of_another_model_does_not_count(registry, keys):
    run, run_id = registry.prepare("k1", name="other", key=keys[0])
    registry.add("k1", package=run.folder / "package", run_id=run_id)
    assert refused(registry, keys, 1) == "the evidence is of another model, 'other'"


def test_a_package_registered_twice_does_not_count_twice(registry, keys):
    run, run_id = registry.prepare("k1", key=keys[0])
    registry.add("k1", package=run.folder / "package", run_id=run_id)
    registry.add("k2", package=run.folder / "package", run_id=run_id)
    connect(registry.uri).set_model_version_tag("desk", "2", "sparsegate.run_key", "k1")
    assert refused(registry, keys, 2) == "the evidence is a replay of version 1's"


@pytest.mark.parametrize(
    "file", ["delta.safetensors", "spec.json", "MODEL_CARD.md", "bom.cdx.json", "../../serving.py"]
)
def test_a_file_swapped_after_signing_is_found(registry, keys, file):
    registry.add("k1", key=keys[0])
    path = registry.package(1) / file
    path.write_bytes(path.read_bytes() + b"\n")
    assert refused(registry, keys, 1) == f"{path.name} is missing or is not the file that was judged"


def test_a_swapped_delta_with_matching_spec_and_tags_is_found(registry, keys):
    registry.add("k1", key=keys[0])
    run, _ = registry.prepare("k2", key=keys[0])
    for file in ("delta.safetensors", "spec.json"):
        shutil.copyfile(run.folder / "package" / file, registry.package(1) / file)
    code, found = registry.verify("models:/desk/1", "--public_key", keys[1])
    assert code == 10
    assert [line.split()[0] for line in found["failed"]] == ["delta.safetensors", "spec.json"]


def test_missing_evidence_is_one_line(registry, keys):
    registry.add("k1", key=keys[0])
    (registry.package(1) / EVIDENCE).unlink()
    assert refused(registry, keys, 1) == "it has no evidence (evidence.dsse.json is missing)"


def test_evidence_of_gates_that_did_not_pass_is_refused(registry, keys):
    registry.add("k1", key=keys[0], observed=0.3)
    assert refused(registry, keys, 1) == "the verdict is FAIL: accuracy: 0.3 is not at least 0.5"


@pytest.mark.parametrize("forgery", ["fewer gates", "other threshold", "other verdict"])
def test_a_verdict_that_does_not_follow_is_refused_even_when_signed(registry, keys, forgery):
    run, run_id = registry.prepare("k1", key=keys[0], observed=0.3)
    path = run.folder / "package" / EVIDENCE
    statement = unseal(path.read_bytes(), predicate_type=EVIDENCE_TYPE).statement
    evidence = json.loads(json.dumps(statement.predicate))
    report = evidence["report"]
    if forgery == "fewer gates":
        report["planned"], report["results"], report["verdict"] = ["over_refusal"], report["results"][1:], "PASS"
    elif forgery == "other threshold":
        evidence["policy"]["decides"]["accuracy"]["floor"] = 0.1
    else:
        report["verdict"] = "PASS"
    from sparsegate.config import RegistryConfig
    from sparsegate.workflow.identity import signing_key

    key = signing_key(RegistryConfig(signing_key=keys[0]))
    path.write_text(seal(Statement(statement.subjects, EVIDENCE_TYPE, evidence), key), encoding="utf-8")
    registry.add("k1", package=run.folder / "package", run_id=run_id)
    expected = {
        "fewer gates": "the gates that answered are not those of policy",
        "other threshold": "is not the one its digest says",
        "other verdict": "the report says PASS but its results say FAIL",
    }
    assert expected[forgery] in refused(registry, keys, 1)


def test_a_changed_predecessor_breaks_the_chain_and_a_deleted_one_is_named(registry, keys):
    for run_key in ("k1", "k2", "k3"):
        registry.add(run_key, key=keys[0])
    path = registry.package(2) / EVIDENCE
    whole = path.read_bytes()
    path.write_bytes(whole + b" ")
    assert refused(registry, keys, 3) == "chain: the evidence of version 2 is not the one that version 3 follows"
    path.write_bytes(whole)
    connect(registry.uri).delete_model_version("desk", "1")
    code, found = registry.verify("models:/desk/3", "--public_key", keys[1])
    assert code == 0
    assert "chain: version 1 was deleted; evidence before version 2 is unknown" in found["unproved"]


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("desk", "names no version"),
        ("models:/../x@champion", "names no version"),
        ("models:/desk@champion", "has no alias 'champion'"),
        ("models:/desk/9", "desk has no version 9; it has 1"),
        ("models:/none/1", "no registered model 'none'"),
        ("models:/it's/1", "registry.name may have"),
    ],
)
def test_a_target_that_is_not_there_is_a_usage_error(registry, target, says):
    registry.add("k1")
    code, out, err = registry.run("verify", target)
    assert (code, out) == (2, "")
    assert says in err


def test_a_key_file_that_is_no_key_is_a_usage_error_that_shows_nothing_of_it(registry):
    registry.add("k1")
    secret = registry.folder / "bad.pem"
    secret.write_text("hunter2", encoding="utf-8")
    for command in (
        ("verify", "models:/desk/1", "--public_key", str(secret)),
        ("promote", "desk", "--version", "1", "--reason", "r", "--signing_key", str(secret)),
    ):
        code, out, err = registry.run(*command)
        assert (code, out) == (2, "")
        assert "Ed25519" in err
        assert "hunter2" not in err


def test_a_judge_that_changed_after_it_judged_is_no_evidence(registry):
    run, _ = registry.prepare("k1")
    now = judge_digest(load_judge("lexical"))
    report = registry.report(run)

    def judged_by(digest):
        results = [replace(result, details={"judge_sha256": digest}) for result in report.results]
        return replace(report, results=tuple(results))

    assert judge_digests(run.policy, judged_by(now)) == {"over_refusal": {"name": "lexical", "sha256": now}}
    with pytest.raises(EvidenceError, match="over_refusal was judged by judge 'lexical', which has changed since"):
        judge_digests(run.policy, judged_by("0" * 64))
