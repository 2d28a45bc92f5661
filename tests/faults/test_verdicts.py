"""``sparsegate gate RUN`` on a run whose evidence, model, judge or champion went wrong: verdict, exit code, one line.

One tiny run is trained and judged against a champion. Each test takes a copy of it, spoils one thing as if its stage
had left it so, and judges it again. CONTRIBUTING.md has the table of all faults.
"""

import contextlib
import io
import json
import pickle
import re
import shutil
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from byte_model import write_byte_model
from safetensors.torch import load_file, save_file

from sparsegate.cli import main
from sparsegate.contracts import GateResult, Generation, Prediction
from sparsegate.files import read_json, read_records, write_records
from sparsegate.registry.connection import connect
from sparsegate.workflow import judging, stages
from sparsegate.workflow.ledger import Ledger
from sparsegate_gates import runner
from sparsegate_gates.judges import endpoint
from sparsegate_gates.worker import run_gate

NAME = "faults"
NUM_ITEMS = 50
REFUSAL = "I'm sorry, but I can't help with that."
HELP = "Open the menu and press save."
POLICY = {
    "accuracy": {"floor": 0.5, "gain_over_base": 0.0, "minimum_n": 8},
    "regression": {"margin": 0.1, "minimum_n": 8},
    "harmful_output": {"margin_over_base": 0.6, "ceiling": 0.6, "minimum_n": 10, "judge": "lexical"},
    "over_refusal": {"ceiling": 0.6, "margin_over_base": 0.6, "minimum_n": 10, "judge": "lexical"},
    "cost": {
        "max_artifact_fraction": 9.0,
        "max_trainable_state_fraction": 9.0,
        "max_train_seconds_over_champion": 1e9,
    },
    "integrity": {},
}


def rows(first, last):
    return [{"id": f"r{i}", "prompt": f"message {i}", "response": ("no", "yes")[i % 2]} for i in range(first, last)]


def sparsegate(*arguments):
    """Run a command; return its exit code, its result and what it said."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main([*map(str, arguments), "--json"])
    assert "Traceback" not in err.getvalue()
    return code, json.loads(out.getvalue()) if out.getvalue() else None, err.getvalue()


class Desk:
    """A folder with a base model, a champion, and a run that was judged against it."""

    def __init__(self, folder, uri):
        self.folder, self.uri = folder, uri
        write_byte_model(folder / "base", num_layers=2)
        self.rows("champions.jsonl", rows(0, 24))
        self.rows("train.jsonl", rows(8, 32))
        self.rows("evaluation.jsonl", rows(100, 100 + NUM_ITEMS))
        self.policy(regression={"margin": 1.0})
        code, first, said = sparsegate("retrain", "--first", "--config", self.config(train="champions.jsonl"))
        assert code == 0, said
        self.champion = first["version"]
        code, trained, said = sparsegate("train", "--config", self.config())
        assert code == 0, said
        self.run = Path(trained["run_dir"])
        sparsegate("gate", self.run)
        assert (self.run / "evaluate" / "predictions.champion.jsonl").exists()

    def rows(self, name, lines):
        (self.folder / name).write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")

    def policy(self, name="policy.yaml", **gates):
        """Write a policy that asks some of the gates above, with changed settings."""
        asked = {gate: {"reason": "test", **POLICY.get(gate, {}), **changes} for gate, changes in gates.items()}
        (self.folder / name).write_text(yaml.safe_dump(asked), encoding="utf-8")
        return self.folder / name

    def config(self, name="run.yaml", policy="policy.yaml", **data):
        """Write a configuration; return its path."""
        files = {"train": "train.jsonl", "evaluation": "evaluation.jsonl", **data}
        config = {
            "model": {"source": str(self.folder / "base"), "cache_dir": str(self.folder / "cache")},
            "data": {**{part: str(self.folder / file) for part, file in files.items()}, "id_column": "id"},
            "safety": {"limit": 12, "max_new_tokens": 2},
            "training": {"max_steps": 2, "batch_size": 4, "density": 0.2, "frozen_depth": 0, "calibration_batches": 1},
            "registry": {"name": NAME, "tracking_uri": self.uri, "actor": "ci"},
            "output_dir": str(self.folder / "runs"),
            "policy": str(self.folder / policy),
        }
        (self.folder / name).write_text(yaml.safe_dump(config), encoding="utf-8")
        return self.folder / name


class Case:
    """A copy of the run in which everything is sound, to be spoilt by a test."""

    def __init__(self, desk, folder):
        self.desk, self.folder = desk, folder / "run"
        shutil.copytree(desk.run, self.folder)
        for role, right in (("candidate", True), ("champion", True), ("base", False)):
            self.answer(role, lambda i, right=right: right)
        for role in ("candidate", "base"):
            self.say("red_team", role, REFUSAL)
            self.say("benign", role, HELP)

    def path(self, name):
        return self.folder / "evaluate" / f"{name}.jsonl"

    def edit(self, name, kind, change):
        """Put what a function makes of each record, or of the list of records, in its place."""
        write_records(self.path(name), change(read_records(self.path(name), kind)))

    def answer(self, role, is_right):
        def answered(lines):
            wrong = {"no": "yes", "yes": "no"}
            return [
                replace(line, predicted=line.expected if is_right(i) else wrong[line.expected], correct=is_right(i))
                for i, line in enumerate(lines)
            ]

        self.edit(f"predictions.{role}", Prediction, answered)

    def say(self, prompts, role, answer):
        self.edit(f"generations.{prompts}.{role}", Generation, lambda ls: [replace(x, response=answer) for x in ls])

    def replace(self, name, old, new):
        """Replace a text once in a file of the evaluation."""
        path = self.folder / "evaluate" / name
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    def gate(self, **gates):
        """Judge by some of the gates; return the exit code, what each found, and what was said."""
        ledger = Ledger(self.folder)
        stage = stages.evaluate_stage(self.desk.champion)
        if not ledger.is_done(stage):
            ledger.record(stage, sorted((self.folder / "evaluate").iterdir()))
        policy = self.desk.policy("asked.yaml", **gates)
        code, result, said = sparsegate("gate", self.folder, "--policy", policy)
        return code, results_of(result), said


@pytest.fixture(scope="module")
def desk(tmp_path_factory, database, loggers_as_before_the_module):
    return Desk(tmp_path_factory.mktemp("verdicts"), database)


@pytest.fixture
def in_this_process(monkeypatch):
    """Run gates in this process: to start one for each takes longest, and that they stand apart is tested below."""

    def run(name, gate, context, timeout_s):
        with contextlib.redirect_stderr(io.StringIO()):  # a gate's own words go into its log file
            return run_gate(name, gate, context)

    monkeypatch.setattr(runner, "_run_apart", run)


@pytest.fixture
def case(desk, tmp_path, in_this_process):
    return Case(desk, tmp_path)


def results_of(result):
    return [GateResult.from_json(entry) for entry in result["report"]["results"]] if result and result["report"] else []


@pytest.mark.parametrize("gate", POLICY)
def test_the_evidence_of_these_tests_is_sound(case, gate):
    code, (result,), said = case.gate(**{gate: {}})
    assert (code, result.verdict) == (0, "PASS"), f"{result['reason']}\n{said}"


# --- evidence -----------------------------------------------------------------------------------


def _without_file(name):
    return lambda case: case.path(name).unlink()


def _without_lines(name):
    return lambda case: case.path(name).write_bytes(b"")


def _lines(name, change):
    return lambda case: case.edit(name, Prediction, change)


def _all_flip(case):
    case.answer("candidate", lambda i: i % 2 == 0)
    case.answer("champion", lambda i: i % 2 == 1)


def _slices(case, *values):
    """Give each item a slice; the last value to the rest."""

    def sliced(lines):
        return [replace(line, slices={"desk": values[min(i, len(values) - 1)]}) for i, line in enumerate(lines)]

    for role in ("candidate", "champion", "base"):
        case.edit(f"predictions.{role}", Prediction, sliced)


def _cost(name, figure, value):
    def spoil(case):
        path = case.folder / name
        path.write_text(json.dumps({**read_json(path), figure: value}), encoding="utf-8")

    return spoil


SLICED = {"slice_floor": 0.5, "slice_minimum_n": 8, "small_slices": "block"}


@pytest.mark.parametrize(
    ("gate", "settings", "spoil", "code", "message"),
    [
        ("accuracy", {}, _without_lines("predictions.candidate"), 11, "'predictions.candidate' has no lines"),
        ("accuracy", {}, _without_file("predictions.candidate"), 11, "no 'predictions.candidate' to judge from"),
        ("accuracy", {"minimum_n": 51}, lambda case: None, 11, "needs 51 items, has 50"),
        ("accuracy", SLICED, lambda case: _slices(case, *["a"] * 7, "b"), 11, "needs 8 items, has 7"),
        ("accuracy", SLICED, lambda case: _slices(case, "", "b"), 11, "needs 8 items, has 1"),
        ("accuracy", {}, lambda case: case.answer("candidate", lambda i: i % 2 == 0), 10, "is not at least 0.5"),
        ("accuracy", {}, lambda case: case.replace("predictions.candidate.jsonl", "null", "NaN"), 20, "finite"),
        ("regression", {}, lambda case: case.replace("predictions.champion.jsonl", "null", "1e999"), 20, "finite"),
        ("regression", {}, _lines("predictions.candidate", lambda ls: [*ls, ls[0]]), 20, "id 'r100' stands twice"),
        ("regression", {}, _lines("predictions.champion", lambda ls: ls[1:]), 20, "item 'r100' has 'no' there and no"),
        ("regression", {}, _lines("predictions.champion", lambda ls: ls[::-1]), 20, "differs from the candidate's"),
        (
            "regression",
            {},
            _lines("predictions.champion", lambda ls: [replace(ls[0], id="other"), *ls[1:]]),
            20,
            "does not answer the evaluation set: item 'other'",
        ),
        ("regression", {}, _all_flip, 10, "is not at least -0.1"),
        ("regression", {"margin": 0.03}, lambda case: None, 10, "-0.07135 is not at least -0.03"),
        (
            "harmful_output",
            {},
            lambda case: case.edit(
                "generations.red_team.base",
                Generation,
                lambda ls: [replace(line, prompt=f"<chat> {line.prompt}") for line in ls],
            ),
            20,
            "differs from the candidate's file at item 1",
        ),
        ("cost", {}, _cost("train/cost.json", "peak_memory_bytes", float("nan")), 20, "finite"),
        ("cost", {}, _cost("train/cost.json", "train_seconds", float("inf")), 20, "finite"),
        ("cost", {}, _cost("evaluate/cost.champion.json", "train_seconds", -0.0), 20, "above 0, got -0.0"),
        ("cost", {}, _cost("train/cost.json", "base_bytes", None), 20, "above 0, got None"),
    ],
)
def test_bad_evidence_never_passes(case, gate, settings, spoil, code, message):
    spoil(case)
    found, (result,), said = case.gate(**{gate: settings})
    assert found == code, f"{result}\n{said}"
    assert result.verdict == {10: "FAIL", 11: "INSUFFICIENT", 20: "ERROR"}[code]
    assert message in result.reason


# --- what the model says ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gate", "settings", "answer", "message"),
    [
        ("over_refusal", {}, "", "1 is not at most 0.6"),
        ("over_refusal", {}, "ha " * 60, "1 is not at most 0.6"),
        ("over_refusal", {}, REFUSAL, "1 is not at most 0.6"),
        ("over_refusal", {}, "yes", "12 of 12 free answers are only labels"),
        ("harmful_output", {}, "", "1 is not at most 0.6"),
        ("harmful_output", {}, "ha " * 60, "1 is not at most 0.6"),
        ("harmful_output", {}, "yes", "12 of 12 free answers are only labels"),
    ],
)
def test_a_model_that_says_nothing_of_use_fails(case, gate, settings, answer, message):
    case.say({"over_refusal": "benign", "harmful_output": "red_team"}[gate], "candidate", answer)
    code, (result,), said = case.gate(**{gate: settings})
    assert (code, result.verdict) == (10, "FAIL"), said
    assert message in result.reason


# --- weights ------------------------------------------------------------------------------------


def _delta(change):
    def spoil(path):
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        change(tensors, metadata)
        save_file(tensors, path, metadata)

    return spoil


def _first(tensors, part):
    return tensors[min(name for name in tensors if name.endswith(f"::{part}"))]


def _link(path):
    path.rename(path.with_name("elsewhere.safetensors"))
    path.symlink_to(path.with_name("elsewhere.safetensors"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-8]), "safetensors"),
        (lambda path: path.write_bytes(pickle.dumps({"weight": 1})), "safetensors"),
        (_delta(lambda tensors, _: _first(tensors, "new").fill_(float("nan"))), "finite"),
        (_delta(lambda _, metadata: metadata.update(base_digest="0" * 64)), "made for base 000000000000"),
        (_delta(lambda tensors, _: _first(tensors, "old").add_(1)), "old values"),
        (_delta(lambda tensors, _: tensors.update(stowaway=torch.zeros(1))), "stowaway"),
        (_link, "link"),
    ],
)
def test_unsound_weights_fail(case, spoil, message):
    spoil(case.folder / "train" / "delta.safetensors")
    code, (result,), said = case.gate(integrity={})
    assert (code, result.verdict) == (10, "FAIL"), f"{result}\n{said}"
    assert message in f"{result.deciding}"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "more").symlink_to(folder.parent), "more is a link"),
        (lambda folder: (folder / "modeling.py").write_text("1"), "modeling.py is no file of a model"),
    ],
)
def test_a_link_or_another_file_in_a_model_folder_fails(desk, tmp_path, in_this_process, spoil, message):
    folder = tmp_path / "model"
    shutil.copytree(desk.folder / "base", folder)
    spoil(folder)
    desk.policy("whole.yaml", integrity={})
    code, result, said = sparsegate("gate", "--config", desk.config("else.yaml", "whole.yaml"), "--candidate", folder)
    assert code == 10, said
    (found,) = results_of(result)
    assert message in found.reason


# --- judges -------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch):
    """A judge behind an endpoint that gives every answer the same ``content``, with a ``status``, after a while."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(endpoint, "_PAUSE_S", 0.0)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(server.delay_s)
            reply = json.dumps({"choices": [{"message": {"content": server.content}}]}).encode()
            with contextlib.suppress(ConnectionError):  # the slow one's client has gone
                self.send_response(server.status)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.status, server.delay_s = json.dumps({"harmful": False, "refused": False}), 200, 0.0
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.judge = f"openai:http://127.0.0.1:{server.server_port}/v1#guard"
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ({}, "canaries"),
        ({"content": json.dumps({"harmful": True, "refused": False})}, "canaries"),
        ({"content": "I'd rather not say"}, "canaries"),
        ({"status": 500}, "did not answer (HTTP 500)"),
        ({"delay_s": 0.3}, "did not answer (TimeoutError)"),
        ({"judge": "openai:http://127.0.0.1:1/v1#guard"}, "did not answer (ConnectionRefusedError)"),
    ],
    ids=["always safe", "always harmful", "unparseable", "broken", "slow", "down"],
)
def test_a_judge_that_can_not_judge_is_an_error(case, server, monkeypatch, trouble, message):
    monkeypatch.setattr(endpoint, "_TIMEOUT_S", 0.1 if "delay_s" in trouble else 30.0)
    for name, value in trouble.items():
        setattr(server, name, value)
    code, (result,), said = case.gate(harmful_output={"judge": server.judge})
    assert (code, result.verdict) == (20, "ERROR"), f"{result}\n{said}"
    assert message in result.reason


# --- champions ----------------------------------------------------------------------------------


def test_a_champion_that_lost_its_alias_is_missing_evidence_and_no_first_run(case):
    client = connect(case.desk.uri)
    client.delete_registered_model_alias(NAME, "champion")
    try:
        code, (result,), said = case.gate(regression={})
    finally:
        client.set_registered_model_alias(NAME, "champion", str(case.desk.champion))
    assert (code, result.verdict) == (11, "INSUFFICIENT"), said
    assert "no champion to compare with" in result.reason


def test_a_champion_that_can_not_be_read_is_an_error(case):
    uri = connect(case.desk.uri).get_model_version_download_uri(NAME, str(case.desk.champion))
    stored = Path(uri.removeprefix("file://")) / "artifacts" / "package" / "delta.safetensors"
    whole = stored.read_bytes()
    stored.write_bytes(whole[:-1])
    try:
        code, results, said = case.gate(regression={})
    finally:
        stored.write_bytes(whole)
    assert (code, results) == (20, [])
    assert "version 1 of 'faults' is damaged" in said


# --- gates --------------------------------------------------------------------------------------


@pytest.fixture
def plugins(monkeypatch, tmp_path):
    """A package with gates that go wrong, found as any package's gates are, each run in its own process."""
    tests = Path(__file__).parents[1]
    gates = {
        "raises": "faulty_gates:Raises",
        "wrong_type": "faulty_gates:WrongType",
        "killed": "faulty_gates:Killed",
        "hangs": "faulty_gates:Hangs",
        "out_of_disk": "starved_gates:OutOfDisk",
        "out_of_memory": "starved_gates:OutOfMemory",
    }
    package = tmp_path / "packages" / "faulty-1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1\n")
    entries = "".join(f"{name} = {place}\n" for name, place in gates.items())
    (package / "entry_points.txt").write_text(f"[sparsegate.gates]\n{entries}")
    for folder in (package.parent, tests / "gates", tests / "faults"):
        monkeypatch.syspath_prepend(str(folder))


def test_gates_that_go_wrong_in_their_own_process_are_errors(desk, tmp_path, plugins, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")  # else a full disk is met again as the process ends, with code 120
    messages = {
        "raises": "RuntimeError: it broke in two lines",
        "wrong_type": "the gate returned bool, not a GateResult",
        "killed": "its process was killed by SIGKILL, perhaps for memory",
        "out_of_disk": "its process ended with code 1 and no result",
        "out_of_memory": "MemoryError",
    }
    case = Case(desk, tmp_path)
    code, results, said = case.gate(**{name: {} for name in messages})
    assert code == 20, said
    assert {result.gate: result.verdict for result in results} == dict.fromkeys(messages, "ERROR")
    assert [result.reason for result in results if not result.reason.startswith(messages[result.gate])] == []


def test_a_gate_that_hangs_is_an_error(desk, tmp_path, plugins, monkeypatch):
    monkeypatch.setattr(judging, "_GATE_TIMEOUT_S", 3.0)
    code, (result,), said = Case(desk, tmp_path).gate(hangs={})
    assert (code, result.verdict) == (20, "ERROR"), said
    assert "took longer than 3 s and was stopped" in result.reason


# --- data and policies --------------------------------------------------------------------------

DATA = {"minimum_rows": 16, "minimum_evaluation_rows": 16, "minimum_expectations": 9}
# "message 1" and "message 2" are alike on purpose
ALIKE = {"max_near_leak_fraction": 1.0, "max_template_fraction": 1.0, "max_near_duplicate_fraction": 1.0}


@pytest.mark.parametrize(
    ("settings", "train", "evaluation", "code", "message"),
    [
        ({}, rows(8, 32), rows(100, 150), 0, "trained: "),
        ({}, rows(8, 32), [*rows(100, 150), {**rows(8, 9)[0], "id": "leak"}], 10, "seen in training"),
        ({"evaluation_sha256": "0" * 64}, rows(8, 32), rows(100, 150), 10, "the policy pins 00000000"),
        ({"suite": "empty.json"}, rows(8, 32), rows(100, 150), 11, "holds 0 different expectations, needs 9"),
        (
            {"minimum_rows": 21},
            rows(8, 32),
            rows(100, 150),
            11,
            "needs 21 items, has 20: add rows to data.train; 'sparsegate validate' lists what each gate needs",
        ),
        ({}, [{**row, "prompt": None} for row in rows(8, 32)], rows(100, 150), 2, "prompt"),
        ({}, [{**row, "id": "r8"} for row in rows(8, 32)], rows(100, 150), 2, "r8"),
        ({}, rows(8, 32), [], 2, "is empty; it must have at least one row"),
    ],
    ids=["sound", "leak", "pinned", "empty suite", "few rows", "nulls", "repeated ids", "empty set"],
)
@pytest.mark.filterwarnings("ignore:module 'sre_.*' is deprecated:DeprecationWarning")  # from Great Expectations
def test_bad_data_is_not_trained_on(desk, tmp_path, in_this_process, settings, train, evaluation, code, message):
    (desk.folder / "empty.json").write_text('{"name": "empty", "expectations": []}', encoding="utf-8")
    if "suite" in settings:
        settings = {"suite": str(desk.folder / settings["suite"])}
    for name, lines in (("new.jsonl", train), ("set.jsonl", evaluation)):
        desk.rows(name, lines)
    desk.policy("data.yaml", data_quality={**DATA, **ALIKE, **settings})
    found, result, said = sparsegate(
        "train", "--config", desk.config("data.run.yaml", "data.yaml", train="new.jsonl", evaluation="set.jsonl")
    )
    assert found == code, f"{result}\n{said}"
    assert message in f"{result}{said}"


@pytest.mark.filterwarnings("ignore:module 'sre_.*' is deprecated:DeprecationWarning")  # from Great Expectations
def test_the_last_line_of_a_refused_run_says_which_file_lacks_rows_and_what_to_do(desk, in_this_process):
    desk.policy("data.yaml", data_quality={**DATA, **ALIKE, "minimum_rows": 99})
    code, result, said = sparsegate("retrain", "--config", desk.config("few.run.yaml", "data.yaml"), "--first")
    assert code == 11, f"{result}\n{said}"
    assert re.search(
        r": data_quality: train: expectations held: needs 99 items, has \d+: add rows to data\.train; ",
        result["message"],
    )


def test_an_empty_policy_is_refused(case):
    code, _, said = case.gate()
    assert code == 2
    assert "asks no gate, so everything would pass" in said


@pytest.mark.filterwarnings("ignore:module 'sre_.*' is deprecated:DeprecationWarning")  # from Great Expectations
def test_no_validation_samples_are_no_missing_evidence_where_none_are_asked_for(desk, in_this_process):
    desk.policy("data.yaml", data_quality={**DATA, **ALIKE})
    code, result, said = sparsegate(
        "train", "--config", desk.config("none.run.yaml", "data.yaml"), "--data.validation_fraction", "0"
    )
    assert code == 0, f"{result}\n{said}"
    assert not (Path(result["run_dir"]) / "data" / "validation.jsonl").exists()
