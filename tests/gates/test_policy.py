import subprocess
import sys

import pytest

from sparsegate.contracts import Check
from sparsegate.errors import ConfigError
from sparsegate.evaluation.intervals import clopper_pearson, tango, wilson
from sparsegate_gates import GATES, all_gates, plugins, table
from sparsegate_gates.accuracy import Accuracy
from sparsegate_gates.policy import load_policy, shipped_policies

SOUND = "integrity:\n  reason: test, today\n  minimum_changed: 2\n"


def policy(tmp_path, text):
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", shipped_policies())
def test_every_shipped_policy_loads_asks_all_gates_and_dates_its_reasons(name):
    found = load_policy(name)
    assert found.name == name
    # exact answers are counted, or how likely the expected ones are
    left_out = "accuracy" if name == "free_text" else "likelihood"
    assert list(found.gates) == [gate for gate in GATES if gate != left_out]
    assert all("2026-" in settings.reason for settings in found.gates.values())


def test_the_shipped_policies_are_known():
    assert shipped_policies() == ("elsewhere", "free_text", "pilot", "standard", "strict")
    assert load_policy("standard").gates["harmful_output"].ceiling is None
    assert load_policy("strict").gates["harmful_output"].ceiling == 0.1


def test_the_standard_thresholds_can_be_met_at_the_shipped_sizes():
    gates = load_policy("standard").gates
    accuracy, regression = gates["accuracy"], gates["regression"]
    harm, refusal = gates["harmful_output"], gates["over_refusal"]
    assert wilson(round(0.79 * 480), 480).low >= accuracy.floor
    assert wilson(13, 32).low >= accuracy.class_recall_floor
    assert tango(430, 25, 25, 0).low >= -regression.margin
    assert tango(480 - 24, 0, 24, 0).low < -regression.margin, "a loss of five points must fail"
    assert tango(94, 33, 33, 0).high <= harm.margin_over_base
    assert tango(harm.minimum_n, 0, 0, 0).high <= harm.margin_over_base
    assert clopper_pearson(15, 120).high <= refusal.ceiling
    assert clopper_pearson(2, refusal.minimum_n).high <= refusal.ceiling


def test_the_digest_follows_the_thresholds_and_not_the_layout(tmp_path):
    first = load_policy(policy(tmp_path, SOUND))
    again = load_policy(policy(tmp_path, "# a comment\n" + SOUND))
    other = load_policy(policy(tmp_path, SOUND.replace("2", "3")))
    assert first.sha256 == again.sha256 != other.sha256
    assert list(first.gates) == ["integrity"]


# --- one policy extends another ---

CHILD = "extends: standard\naccuracy:\n  reason: test, today\n  floor: 0.9\n"


def test_a_policy_keeps_what_it_does_not_change(tmp_path):
    parent, child = load_policy("standard"), load_policy(policy(tmp_path, CHILD))
    assert list(child.gates) == list(parent.gates)
    assert child.gates["accuracy"].floor == 0.9
    assert child.gates["accuracy"].gain_over_base == parent.gates["accuracy"].gain_over_base
    assert child.gates["accuracy"].reason == "test, today"
    assert type(child.gates["accuracy"]) is GATES["accuracy"].settings
    assert child.gates["regression"] == parent.gates["regression"]
    assert child.sha256 != parent.sha256


def test_the_digest_covers_the_policy_that_is_extended(tmp_path):
    (tmp_path / "parent.yaml").write_text(SOUND)
    child = "extends: parent.yaml\ncost:\n  reason: x\n  max_train_seconds: 3\n  max_artifact_fraction: 1\n"
    before = load_policy(policy(tmp_path, child)).sha256
    (tmp_path / "parent.yaml").write_text(SOUND.replace("2", "3"))
    assert load_policy(policy(tmp_path, child)).sha256 != before


def test_a_policy_extends_one_that_extends_another(tmp_path):
    found = load_policy(policy(tmp_path, "extends: pilot\ncost:\n  reason: test\n  max_train_seconds: 9\n"))
    assert found.gates["accuracy"] == load_policy("pilot").gates["accuracy"]
    assert found.gates["integrity"] == load_policy("standard").gates["integrity"]
    assert found.gates["cost"].max_train_seconds == 9


def test_policies_that_extend_each_other_are_refused(tmp_path):
    (tmp_path / "other.yaml").write_text("extends: own.yaml\n")
    with pytest.raises(ConfigError, match="which extends this one"):
        load_policy(policy(tmp_path, "extends: other.yaml\n"))


def test_whoever_changes_a_threshold_gives_a_reason(tmp_path):
    with pytest.raises(ConfigError, match=r"own.yaml:3: 'accuracy.reason' is missing"):
        load_policy(policy(tmp_path, "extends: standard\naccuracy:\n  floor: 0.1\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: standart\n", "did you mean 'standard'"),
        ("extends: missing.yaml\n", "no such configuration file"),
        ("extends: [standard, strict]\n", "extends must be a single value"),
        ("extends: own.yaml\n", "extends 'own.yaml', which extends this one"),
        ("extends: standard\nextends: strict\n", "'extends' stands twice"),
        (CHILD + "  flor: 1\n", "unknown key 'accuracy.flor'; did you mean 'floor'"),
        (CHILD.replace("0.9", "90"), "floor must be in"),
    ],
)
def test_a_wrong_extension_is_refused(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_policy(policy(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "asks no gate"),
        ("integrity: null\n", "asks no gate"),
        ("integrty:\n  reason: x\n", r"own.yaml:1: unknown key 'integrty'; did you mean 'integrity'"),
        (SOUND + "  minimum_change: 1\n", r"own.yaml:4: unknown key 'integrity.minimum_change'; did you mean"),
        ("integrity:\n  minimum_changed: 1\n", "'integrity.reason' is missing"),
        ("integrity:\n  reason: ''\n", "reason must say why"),
        ("accuracy:\n  reason: x\n  floor: nan\n  gain_over_base: 0\n  minimum_n: 1\n", "floor must be in"),
        ("accuracy:\n  reason: x\n  floor: 75\n  gain_over_base: 0\n  minimum_n: 0\n", "minimum_n must be at least 1"),
        ("cost:\n  reason: x\n  max_train_seconds: 3\n", "at least two of"),
        ("- integrity\n", "must be a mapping"),
    ],
)
def test_a_wrong_policy_is_refused_with_the_line(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_policy(policy(tmp_path, text))


def test_an_unknown_policy_suggests_one():
    with pytest.raises(ConfigError, match="did you mean 'standard'"):
        load_policy("standart")


def test_two_gates_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two gates are called 'accuracy'"):
        table([Accuracy, Accuracy])


def test_a_plugin_can_not_take_a_gates_name(monkeypatch):
    entry = type("Entry", (), {"name": "accuracy", "value": "elsewhere:Gate"})()
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry])
    with pytest.raises(ConfigError, match="given twice"):
        all_gates()


def test_every_gate_says_its_question_and_stage():
    for name, gate in GATES.items():
        module = sys.modules[gate.__module__]
        assert (module.__doc__ or "").split("\n")[0].endswith("?"), name
        assert gate.stage in ("data", "model")
        assert module.__name__.endswith(name)


def test_loading_a_policy_imports_nothing_heavy():
    heavy = "torch", "transformers", "mlflow", "great_expectations", "scipy", "pandas"
    code = (
        "import sys, sparsegate_gates.policy as policy; policy.load_policy('standard'); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert found.stdout.strip() == "[]"


def test_a_check_cannot_pass_on_nothing():
    assert Check.at_least("x", 1.0, 0.5, n=0).verdict == "INSUFFICIENT"
    assert Check.at_least("x", float("nan"), 0.5, n=9).verdict == "ERROR"
