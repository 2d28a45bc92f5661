"""The data sets under data/: sound, as recorded, and caught when they are not."""

import csv
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest

from sparsegate.contracts import Sample
from sparsegate.data import find_leakage, find_near_leaks, find_template_collisions

DATA = Path(__file__).parents[2] / "data"
XSTEST = DATA.parents[1] / "shared" / "data" / "xstest" / "xstest_prompts.csv"


@pytest.fixture(scope="module")
def checks():
    spec = importlib.util.spec_from_file_location("data_check", DATA / "check.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["data_check"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["data_check"]


@pytest.fixture
def copied(tmp_path):
    """A copy of the data sets, and a function that changes one row of a file."""
    shutil.copytree(DATA, tmp_path / "data", ignore=shutil.ignore_patterns("__pycache__"))

    def change(name, position, **values):
        path = tmp_path / "data" / name
        lines = path.read_text(encoding="utf-8").splitlines()
        lines[position] = json.dumps({**json.loads(lines[position]), **values}, ensure_ascii=False)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    return tmp_path / "data", change


def rows(name):
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def test_shipped_data_is_sound_and_as_recorded(checks):
    assert checks.check(DATA) == []
    assert checks.manifest_problems(DATA) == []


def test_every_shipped_data_file_is_checked(checks):
    assert {path.relative_to(DATA).as_posix() for path in DATA.rglob("*.jsonl")} == set(checks.FILES)


def test_each_intent_has_as_many_messages_as_the_readme_says():
    for split, count in (("train", 64), ("evaluation", 32)):
        intents = [row["intent"] for row in rows(f"support_routing/{split}.jsonl")]
        assert len(set(intents)) == 15
        assert {intents.count(intent) for intent in set(intents)} == {count}


def test_the_readmes_state_the_rows_of_every_file(checks):
    for name, entry in checks.manifest(DATA).items():
        folder, _, file = name.partition("/")
        readme = (DATA / folder / "README.md").read_text(encoding="utf-8")
        assert f"| `{file}` | {entry['rows']} |" in readme


@pytest.mark.parametrize(
    ("name", "values", "complaint"),
    [
        ("support_routing/train.jsonl", {"id": "train-0002"}, "the id train-0002 stands more than once"),
        ("support_routing/train.jsonl", {"text": " "}, "text must be a text"),
        ("support_routing/train.jsonl", {"channel": "fax"}, "has the channel 'fax'; choices: chat, email, form, phone"),
        ("support_routing/evaluation.jsonl", {"intent": "returns"}, "only one of the splits has the intents returns"),
        ("support_routing/train.jsonl", {"extra": "x"}, ":1: the columns must be id, text, intent, channel"),
        ("safety/canaries.jsonl", {"harmful": "false"}, "harmful must be true or false, got 'false'"),
        ("safety/canaries.jsonl", {"harmful": True}, "ca-001 is both harmful and refused"),
    ],
)
def test_a_broken_row_is_named(checks, copied, name, values, complaint):
    folder, change = copied
    change(name, 0, **values)
    assert any(complaint in problem for problem in checks.check(folder))


@pytest.mark.parametrize(
    ("target", "source", "column"),
    [
        ("support_routing/train.jsonl", "support_routing/train.jsonl", "text"),
        ("support_routing/evaluation.jsonl", "support_routing/train.jsonl", "text"),
        ("safety/safety_mix.jsonl", "safety/red_team.jsonl", "prompt"),
        ("safety/safety_mix.jsonl", "safety/benign.jsonl", "prompt"),
    ],
)
def test_a_reworded_copy_is_named(checks, copied, target, source, column):
    folder, change = copied
    copy = rows(source)[9]
    change(target, 3, **{column: f"{copy[column].upper()} please"})
    assert any(copy["id"] in problem and "of their words" in problem for problem in checks.check(folder))


def prompts(file_rows):
    return [Sample(row["id"], row["prompt"], "") for row in file_rows]


@pytest.mark.parametrize("measured", ["red_team", "benign", "canaries", "xstest"])
def test_no_measured_prompt_stands_in_the_safety_mix_in_nearly_the_same_words(measured):
    if measured != "xstest":
        wanted = prompts(rows(f"safety/{measured}.jsonl"))
    elif XSTEST.exists():
        with XSTEST.open(encoding="utf-8", newline="") as file:
            wanted = prompts(csv.DictReader(file))
    else:
        pytest.skip(f"XSTest is not beside this checkout: no {XSTEST}")
    mix = prompts(rows("safety/safety_mix.jsonl"))
    assert find_leakage(mix, wanted) == []
    assert find_near_leaks(mix, wanted, share=0.7) == []
    assert find_template_collisions(mix, wanted) == []


def test_a_changed_file_differs_from_the_manifest(checks, copied):
    folder, change = copied
    change("safety/benign.jsonl", 0, prompt="How do I kill a process on Linux?")
    assert checks.check(folder) == []
    assert checks.manifest_problems(folder) == [
        "manifest.json: safety/benign.jsonl is not as recorded; run 'python data/check.py --write'"
    ]


def test_a_missing_file_is_named(checks, copied):
    folder, _ = copied
    (folder / "safety" / "benign.jsonl").unlink()
    assert checks.check(folder) == ["safety/benign.jsonl:1: the file is missing"]
