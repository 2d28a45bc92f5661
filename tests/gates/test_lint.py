from dataclasses import replace

import pytest

from sparsegate.contracts import Sample
from sparsegate_gates import GATES
from sparsegate_gates.lint import Countable, Sizes, lint
from sparsegate_gates.policy import load_policy, shipped_policies

SHIPPED = Sizes(
    train=960,
    evaluation=480,
    red_team=160,
    benign=120,
    canaries={"harmful=True": 8, "harmful=False": 16, "refused=True": 8, "refused=False": 16},
    labels={"label=a": 32, "label=b": 448},
    slices={"channel=chat": 412, "channel=phone": 68},
    general=80,
)


def need(policy, sizes, gate, question):
    (found,) = [entry for entry in lint(load_policy(policy), sizes)[gate] if entry.question == question]
    return found


@pytest.mark.parametrize("name", shipped_policies())
def test_every_shipped_policy_can_pass_at_the_shipped_sizes(name):
    # whose expected responses are free text has no labels
    found = lint(load_policy(name), replace(SHIPPED, labels={}) if name == "free_text" else SHIPPED)
    assert list(found) == [gate for gate in GATES if gate != ("accuracy" if name == "free_text" else "likelihood")]
    assert all(entry.can_pass for asked in found.values() for entry in asked)
    assert {gate for gate, asked in found.items() if not asked} == {"integrity", "cost"}


def test_the_pilot_policy_can_pass_at_the_sizes_that_it_names():
    sizes = Sizes(60, 60, 24, 24, SHIPPED.canaries, {"label=a": 10, "label=b": 50}, {"channel=x": 60})
    assert all(entry.can_pass for asked in lint(load_policy("pilot"), sizes).values() for entry in asked)


def test_every_gate_that_counts_items_says_what_it_needs():
    counted = [name for name, gate in GATES.items() if issubclass(gate.settings, Countable)]
    assert counted == ["data_quality", "accuracy", "likelihood", "regression", "harmful_output", "over_refusal"]


def test_what_is_lacking_is_counted():
    few = Sizes(**{**vars(SHIPPED), "evaluation": 50, "red_team": 12})
    short = need("standard", few, "accuracy", "accuracy")
    assert (short.can_pass, short.lacks, short.needed) == (False, 150, 200)
    assert need("standard", few, "harmful_output", "harmful over base").lacks == 28
    assert not need("standard", few, "data_quality", "evaluation rows").can_pass
    assert need("standard", SHIPPED, "accuracy", "accuracy").lacks == 0


def test_the_worst_that_passes_is_named():
    assert need("standard", SHIPPED, "accuracy", "accuracy").worst == "356 of 480 right (0.742)"
    assert need("standard", SHIPPED, "over_refusal", "refused").worst == "15 of 120 (0.125)"
    assert need("standard", SHIPPED, "regression", "candidate - champion").worst.endswith("50 of 480 change sides")


def own(tmp_path, text):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    return str(path)


def test_a_bound_that_no_number_of_items_proves_is_found(tmp_path):
    path = own(tmp_path, "extends: standard\naccuracy:\n  reason: test\n  floor: 1.0\n")
    found = need(path, SHIPPED, "accuracy", "accuracy")
    assert (found.can_pass, found.needed, found.lacks, found.worst) == (False, None, None, "")


def test_a_minimum_below_what_the_bound_needs_is_found(tmp_path):
    path = own(tmp_path, "extends: standard\nregression:\n  reason: test\n  margin: 0.01\n  minimum_n: 50\n")
    found = need(path, SHIPPED, "regression", "candidate - champion")
    assert (found.needed, found.can_pass) == (381, True)
    assert need(path, Sizes(**{**vars(SHIPPED), "evaluation": 380}), "regression", "candidate - champion").lacks == 1


def test_the_smallest_slice_that_is_judged_is_what_counts(tmp_path):
    sizes = Sizes(**{**vars(SHIPPED), "slices": {"channel=chat": 440, "channel=phone": 33, "channel=fax": 7}})
    asked = [entry.question for entry in lint(load_policy("standard"), sizes)["regression"]]
    assert asked == ["candidate - champion", "smallest group, channel=phone"]
    assert not need("standard", sizes, "regression", "smallest group, channel=phone").can_pass
    blocking = own(tmp_path, "extends: standard\nregression:\n  reason: test\n  small_slices: block\n")
    assert not need(blocking, sizes, "regression", "smallest group, channel=fax").can_pass


def test_a_ceiling_corrected_for_the_judge_needs_more(tmp_path):
    text = "extends: strict\nharmful_output:\n  reason: test\n  judge: lexical\n  minimum_n: 1\n  correct_for_judge: "
    plain = need(own(tmp_path, text + "false\n"), SHIPPED, "harmful_output", "harmful")
    corrected = need(own(tmp_path, text + "true\n"), SHIPPED, "harmful_output", "harmful")
    assert plain.needed == 36
    assert corrected.needed > 2 * plain.needed
    assert corrected.can_pass
    few = Sizes(**{**vars(SHIPPED), "canaries": {"harmful=True": 1, "harmful=False": 1}})
    assert need(own(tmp_path, text + "true\n"), few, "harmful_output", "harmful").needed > 160


def test_a_column_to_cluster_by_is_no_slice(tmp_path):
    path = own(
        tmp_path, "extends: standard\nregression:\n  reason: test\n  small_slices: block\n  cluster_column: doc\n"
    )
    sizes = Sizes(**{**vars(SHIPPED), "slices": {"doc=1": 3, "channel=chat": 477}})
    asked = [entry.question for entry in lint(load_policy(path), sizes)["regression"]]
    assert asked == ["candidate - champion", "smallest group, channel=chat"]


def test_nothing_at_all_passes_nothing():
    found = lint(load_policy("standard"), Sizes(0, 0, 0, 0))
    assert not any(entry.can_pass for asked in found.values() for entry in asked)


def test_sizes_are_counted_from_the_samples():
    samples = [Sample("a", "x", "yes", {"channel": "chat"}), Sample("b", "y", "no"), Sample("c", "z", "yes")]
    canaries = [{"harmful": True, "refused": False}, {"harmful": False, "refused": False}]
    sizes = Sizes.of(train=samples, evaluation=samples, red_team=2, benign=1, canaries=canaries, by_label=True)
    assert sizes.labels == {"label=yes": 2, "label=no": 1}
    assert sizes.slices == {"channel=chat": 1, "channel=(missing)": 2}
    assert sizes.canaries == {"harmful=True": 1, "harmful=False": 1, "refused=False": 2}
