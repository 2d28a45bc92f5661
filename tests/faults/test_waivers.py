"""A waiver holds for what it was signed for, and for nothing else; whatever is wrong with it, the failure stands."""

import base64
import json
import shutil
import subprocess
from dataclasses import asdict, replace
from datetime import date

import numpy
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from safetensors.numpy import save_file

from sparsegate.cli import main
from sparsegate.config_file import load
from sparsegate.contracts import Check, GateResult, Verdict, Waiver
from sparsegate.errors import UsageError
from sparsegate.files import write_json
from sparsegate.reports.junit import to_junit
from sparsegate.reports.markdown import to_markdown
from sparsegate.reports.terminal import render
from sparsegate.workflow import judging
from sparsegate.workflow.inputs import load_inputs
from sparsegate.workflow.run import open_run, reopen_run, resolve_base
from sparsegate_gates.policy import Policy, load_policy
from sparsegate_gates.waivers import WaiverRules, apply_waivers, result_digest, write_waiver

TODAY = date(2026, 11, 24)
LATER = "2099-12-31"
FAILED = GateResult("accuracy", (Check.at_least("accuracy", 0.6, 0.7, n=480, items=("q7", "q9")),))


def key_files(folder, name):
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return key


# --- one waiver file ----------------------------------------------------------------------------


@pytest.fixture
def signed(tmp_path):
    """A sound waiver on disk: the folder, its rules and the approver's key."""
    key = Ed25519PrivateKey.generate()
    policy = Policy("own", "a" * 64, {}, {"alice": key.public_key(), "author": key.public_key()})
    rules = WaiverRules(policy, "author", lambda result: result_digest(result, "run", "delta"), TODAY)
    waiver = Waiver("accuracy", rules.subject(FAILED), policy.sha256, "author", "alice", "a known dip", "2026-12-01")
    write_waiver(tmp_path, waiver, FAILED, key=key, rules=rules)
    return tmp_path, rules, key, waiver


def test_a_sound_waiver_holds_until_its_last_day(signed):
    folder, rules, _, waiver = signed
    (found,) = apply_waivers([FAILED], folder, rules)
    assert (found.verdict, found.measured, found.waiver) == (Verdict.WAIVED, Verdict.FAIL, waiver)
    (found,) = apply_waivers([FAILED], folder, replace(rules, today=date(2026, 12, 1)))
    assert found.verdict is Verdict.WAIVED
    (found,) = apply_waivers([found], folder, replace(rules, today=date(2026, 12, 2)))
    assert found.verdict is Verdict.FAIL


WORSE = GateResult("accuracy", (Check.at_least("accuracy", 0.2, 0.7, n=480),))
NOT_RUN = GateResult.not_run("accuracy", "others have refused")
BROKEN = GateResult.single("accuracy", Verdict.ERROR, "it broke")


@pytest.mark.parametrize(
    ("result", "changes", "complaint"),
    [
        (FAILED, {"today": date(2027, 1, 1)}, "it expired on 2026-12-01"),
        (FAILED, {"subject": lambda result: "other"}, "it was signed for another candidate or another result"),
        (WORSE, {}, "it was signed for another candidate or another result"),
        (FAILED, {"policy": ("b" * 64, "alice")}, "it was signed for another policy"),
        (FAILED, {"policy": ("a" * 64, "bob")}, "the policy lists no key of 'alice' (approvers: bob)"),
        (FAILED, {"policy": ("a" * 64, None)}, "the policy lists no key of 'alice' (approvers: nobody)"),
        (FAILED, {"author": "somebody"}, "it names 'author' as author, the run was made by 'somebody'"),
        (FAILED, {"author": ""}, "the run does not say who made it; set SPARSEGATE_ACTOR and run again"),
        (BROKEN, {}, "an ERROR is never waived; mend what its log names and judge again"),
        (NOT_RUN, {}, "it was not run, so there is nothing to accept; let 'sparsegate gate' ask it first"),
    ],
)
def test_a_waiver_that_does_not_hold_changes_nothing(signed, caplog, result, changes, complaint):
    folder, rules, key, _ = signed
    if "policy" in changes:
        sha256, name = changes["policy"]
        changes = {"policy": Policy("own", sha256, {}, {name: key.public_key()} if name else {})}
    (found,) = apply_waivers([result], folder, replace(rules, **changes))
    assert (found.verdict, found.waiver) == (result.measured, None)
    assert [record.message for record in caplog.records] == [f"{folder / 'accuracy.json'} is refused: {complaint}"]


def edit(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["waiver"].update(expires=LATER),
        lambda data: data["waiver"].update(reason="something else"),
        lambda data: data.pop("signature"),
        lambda data: data.update(signature=""),
        lambda data: data.update(signature=base64.b64encode(b"x" * 64).decode()),
        lambda data: data.update(signature=7),
        lambda data: data.pop("waiver"),
        lambda data: data["waiver"].pop("reason"),
        lambda data: data["waiver"].update(more="than that"),
        lambda data: data["waiver"].update(expires="tomorrow"),
        lambda data: data["waiver"].update(expires=None),
    ],
)
def test_an_edited_or_unsigned_waiver_changes_nothing(signed, caplog, change):
    folder, rules, _, _ = signed
    edit(folder / "accuracy.json", change)
    (found,) = apply_waivers([FAILED], folder, rules)
    assert found.verdict is Verdict.FAIL
    (record,) = caplog.records
    assert "accuracy.json is refused: " in record.message
    assert "\n" not in record.message


@pytest.mark.parametrize("text", ["", "not json", "[]", "null"])
def test_a_file_that_is_no_waiver_changes_nothing(signed, caplog, text):
    folder, rules, _, _ = signed
    (folder / "accuracy.json").write_text(text)
    (found,) = apply_waivers([FAILED], folder, rules)
    assert found.verdict is Verdict.FAIL
    assert len(caplog.records) == 1


def test_a_waiver_moved_to_another_gate_changes_nothing(signed, caplog):
    folder, rules, _, _ = signed
    (folder / "accuracy.json").rename(folder / "cost.json")
    (found,) = apply_waivers([replace(FAILED, gate="cost")], folder, rules)
    assert found.verdict is Verdict.FAIL
    assert "it was signed for the gate 'accuracy'" in caplog.text


def test_a_waiver_that_a_result_brings_along_is_dropped(tmp_path, signed):
    _, rules, _, waiver = signed
    (found,) = apply_waivers([replace(FAILED, waiver=waiver)], tmp_path / "empty", rules)
    assert found.verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("result", "changes", "complaint"),
    [
        (FAILED, {"approver": "Author "}, "'Author ' made the run; somebody else must approve"),
        (FAILED, {"approver": "author"}, "'author' made the run; somebody else must approve"),
        (replace(FAILED, gate="integrity"), {"gate": "integrity"}, "the gate 'integrity' is never waived"),
        (BROKEN, {}, "an ERROR is never waived"),
        (FAILED, {"reason": " "}, "it gives no reason"),
        (FAILED, {"expires": "2026-11-23"}, "it expired on 2026-11-23"),
        (FAILED, {"expires": "soon"}, "expires must be a day such as 2026-12-31, got 'soon'"),
    ],
)
def test_a_waiver_that_could_not_hold_is_not_signed(signed, result, changes, complaint):
    folder, rules, key, waiver = signed
    (folder / "accuracy.json").unlink()
    wanted = replace(waiver, subject_sha256=rules.subject(result), **changes)
    with pytest.raises(UsageError) as refused:
        write_waiver(folder, wanted, result, key=key, rules=rules)
    assert complaint in str(refused.value)
    assert list(folder.iterdir()) == []


def test_a_key_that_is_not_the_approvers_does_not_sign(signed):
    folder, rules, _, waiver = signed
    with pytest.raises(UsageError, match="is not the one that the policy lists for 'alice'"):
        write_waiver(folder, waiver, FAILED, key=Ed25519PrivateKey.generate(), rules=rules)


def test_no_check_can_be_waived_by_itself():
    with pytest.raises(ValueError, match="a waiver is for a whole gate"):
        Check("x", Verdict.WAIVED, reason="please")


# --- through the command line -------------------------------------------------------------------


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """A run whose accuracy gate failed and whose cost gate broke, made by ``maker``; alice may approve."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEGATE_ACTOR", "maker")
    key_files(tmp_path, "alice")
    key_files(tmp_path, "mallory")
    policy = {"extends": "pilot", "approvers": {"alice": "alice.pub.pem"}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(policy))
    rows = [{"id": f"t{n}", "prompt": f"message {n}", "response": "yes" if n % 2 else "no"} for n in range(40)]
    (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    save_file({"w": numpy.zeros(2, numpy.float32)}, tmp_path / "base" / "model.safetensors")
    settings = {"model": {"source": "base"}, "data": {"train": "train.jsonl"}, "policy": "own.yaml"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    config = load(tmp_path / "run.yaml")
    run = open_run(config, load_policy("own.yaml"), load_inputs(config), resolve_base(config))
    run.delta.parent.mkdir()
    run.delta.write_bytes(b"a delta")
    passed = {name: GateResult(name, (Check.at_least("x", 1.0, 0.5, n=9),)) for name in run.policy.gates}
    results = {**passed, "accuracy": FAILED}
    write_results(run, results)
    return run, results


def write_results(run, results):
    write_json(run.gates_dir / "data.json", [results["data_quality"].to_json()])
    write_json(run.gates_dir / "model.json", [r.to_json() for name, r in results.items() if name != "data_quality"])
    judging.write_report(run)
    write_json(run.folder / "outcome.json", {"message": "refused"})


def ask(run, **changes):
    options = {"gate": "accuracy", "approver": "alice", "reason": "a known dip", "expires": LATER, "key": "alice.pem"}
    return ["waive", str(run.folder), *(f"--{name}={value}" for name, value in {**options, **changes}.items())]


def test_a_waived_failure_stays_visible_in_every_report_and_lets_the_run_go_on(judged, capsys):
    run, _ = judged
    assert judging.read_report(run).verdict is Verdict.FAIL
    assert main(ask(run)) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"waived: accuracy until {LATER}, signed by alice in ")
    assert said.endswith(f"'sparsegate register {run.folder}' registers it\n")
    assert not (run.folder / "outcome.json").exists()
    report = judging.read_report(reopen_run(run.folder))
    assert report.verdict is Verdict.WAIVED
    assert report.verdict.releases
    assert report.verdict.exit_code == 0
    why = f"FAIL, 0.6 is not at least 0.7 (waived by alice until {LATER}: a known dip)"
    assert f"WAIVED accuracy: accuracy: {why}" in " ".join(render(report, width=300).split())
    assert f"| accuracy | WAIVED | 0.6 | >= 0.7 | 480 | accuracy: {why} |" in to_markdown(report)
    assert f'<skipped message="WAIVED: {why}" />' in to_junit(report)
    (written,) = [r for r in json.loads((run.report_dir / "report.json").read_text())["results"] if r["waiver"]]
    assert (written["gate"], written["verdict"], written["checks"][0]["verdict"]) == ("accuracy", "WAIVED", "FAIL")


def test_a_waiver_of_the_data_gate_opens_the_way_to_training(judged, capsys):
    run, results = judged
    data = GateResult.single("data_quality", Verdict.FAIL, "doubled rows")
    write_results(run, {**results, "data_quality": data})
    run.delta.unlink()
    assert not judging.go_on(run, "data")
    assert main(ask(run, gate="data_quality")) == 0
    assert capsys.readouterr().out.endswith("still to pass: accuracy; give the run's command again\n")
    assert judging.go_on(run, "data")
    assert main(ask(run)) == 2
    assert "the gate has not judged a candidate" in capsys.readouterr().err


def test_whoever_takes_a_run_up_again_does_not_become_its_author(judged, monkeypatch, capsys):
    run, _ = judged
    monkeypatch.setenv("SPARSEGATE_ACTOR", "alice")
    again = open_run(run.config, run.policy, run.inputs, run.base)
    assert again.manifest.author == "maker"
    assert again.manifest.run_key == run.manifest.run_key


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"approver": "maker"}, "can't waive accuracy: 'maker' made the run; somebody else must approve"),
        ({"approver": "bob"}, "can't waive accuracy: the policy lists no key of 'bob' (approvers: alice)"),
        (
            {"key": "mallory.pem"},
            "can't waive accuracy: the key given is not the one that the policy lists for 'alice'",
        ),
        ({"key": "none.pem"}, "key file none.pem can't be read: No such file or directory"),
        ({"key": "alice.pub.pem"}, "alice.pub.pem holds no unencrypted Ed25519 private key"),
        ({"expires": "2020-01-01"}, "can't waive accuracy: it expired on 2020-01-01"),
        ({"gate": "integrity"}, "can't waive integrity: the gate 'integrity' is never waived"),
        ({"gate": "cost"}, "can't waive cost: the gate has passed; there is nothing to waive"),
        ({"gate": "acuracy"}, "unknown gate 'acuracy'; did you mean 'accuracy'?"),
    ],
)
def test_a_wrong_waiver_is_refused_in_one_line_and_nothing_changes(judged, capsys, changes, complaint):
    run, _ = judged
    assert main(ask(run, **changes)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"sparsegate: {complaint}")
    assert err.count("\n") == 1
    assert not (run.folder / "waivers").exists()
    assert (run.folder / "outcome.json").exists()


def test_an_error_is_never_waived(judged, capsys):
    run, results = judged
    write_results(run, {**results, "accuracy": BROKEN})
    assert main(ask(run)) == 2
    assert "an ERROR is never waived" in capsys.readouterr().err


def test_a_waiver_does_not_survive_another_candidate_or_another_result(judged, caplog):
    run, results = judged
    assert main(ask(run)) == 0
    write_results(run, {**results, "accuracy": WORSE})
    assert judging.read_report(run).verdict is Verdict.FAIL
    write_results(run, results)
    assert judging.read_report(run).verdict is Verdict.WAIVED
    run.delta.write_bytes(b"another delta")
    assert judging.read_report(run).verdict is Verdict.FAIL


def test_a_report_edited_to_hold_a_waiver_is_not_believed(judged):
    run, _ = judged
    path = run.report_dir / "report.json"
    data = json.loads(path.read_text())
    waiver = Waiver("accuracy", "0" * 64, run.policy.sha256, "maker", "alice", "trust me", LATER)
    for result in data["results"]:
        if result["gate"] == "accuracy":
            result.update(waiver=asdict(waiver), verdict="WAIVED")
    path.write_text(json.dumps({**data, "verdict": "WAIVED"}))
    assert judging.read_report(run).verdict is Verdict.FAIL


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_openssl_makes_the_keys_that_the_documentation_names(tmp_path):
    private, public = tmp_path / "k.pem", tmp_path / "k.pub.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    from sparsegate.signing import load_private_key, load_public_key, sign, verify

    signature = sign(load_private_key(private), b"text")
    assert verify(load_public_key(public), b"text", signature)
    assert not verify(load_public_key(public), b"other text", signature)
