"""Whatever the user gets wrong: exit code 2, one clear error on stderr, nothing on stdout, nothing written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from sparsegate.cli import VERBS, main

TRAIN = [
    {"id": f"t{number}", "text": text, "intent": intent, "channel": "chat"}
    for number, (text, intent) in enumerate(
        [("where is my parcel", "delivery"), ("the lamp is broken", "fault"), ("please send the invoice", "invoice")]
        * 8
    )
]
for position, row in enumerate(TRAIN):
    row["text"] += f" number {position}"
EVALUATION = [{**row, "id": f"e{row['id']}", "text": f"hello, {row['text']} again"} for row in TRAIN]


def write_rows(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with data files, in which commands run; its configuration is sound."""
    folder = tmp_path / "project"
    folder.mkdir()
    write_rows(folder / "train.jsonl", TRAIN)
    write_rows(folder / "evaluation.jsonl", EVALUATION)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SPARSEGATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_config(folder)
    return folder


def write_config(folder, text="", **sections):
    """Write ``run.yaml``: sound settings, with some of them replaced, and lines of text after them."""
    columns = {"prompt_column": "text", "response_column": "intent", "id_column": "id", "slice_columns": ["channel"]}
    settings = {
        "data": {"train": "train.jsonl", "evaluation": "evaluation.jsonl", **columns, **sections.pop("data", {})},
        "model": {"source": "base", **sections.pop("model", {})},
        **sections,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings, sort_keys=False) + text, encoding="utf-8")


@pytest.fixture
def refused(project, capsys):
    """Run a command that must be refused; return what it says on stderr."""

    def run(*arguments):
        before = contents(project)
        code = main(arguments or ("retrain", "--config", "run.yaml", "--first"))
        out, err = capsys.readouterr()
        assert code == 2, err
        assert out == ""
        assert err.startswith("sparsegate: ")
        assert "Traceback" not in err
        assert contents(project) == before, "a refused command must not write"
        return err.removeprefix("sparsegate: ")

    return run


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_the_configuration_of_these_tests_is_sound_but_for_the_base_model(project, capsys):
    assert main(["validate", "--config", "run.yaml"]) == 11
    assert "valid, but no model can pass these gates" in capsys.readouterr().out


# --- data ---------------------------------------------------------------------------------------


def test_a_missing_data_file_is_named(refused, project):
    (project / "train.jsonl").unlink()
    assert refused() == "train.jsonl does not exist\n"


def test_an_empty_data_file_is_named(refused, project):
    (project / "train.jsonl").write_bytes(b"\n")
    assert refused() == "train.jsonl is empty; it must have at least one row\n"


def test_a_wrong_column_is_suggested(refused, project):
    write_config(project, data={"prompt_column": "txt"})
    assert refused() == "train.jsonl has no column 'txt'; did you mean 'text'? choices: channel, id, intent, text\n"


def test_a_label_that_training_does_not_have_is_named_with_the_samples(refused, project):
    write_rows(project / "evaluation.jsonl", [{**EVALUATION[0], "intent": "delivry"}, *EVALUATION[1:]])
    assert refused() == (
        "unknown label 'delivry' in 1 evaluation sample (et0); did you mean 'delivery'?"
        " choices: delivery, fault, invoice\n"
        "add training samples for these labels or correct them\n"
    )


def test_invalid_utf8_is_named_by_line_and_byte(refused, project):
    lines = (project / "train.jsonl").read_bytes().splitlines(keepends=True)
    (project / "train.jsonl").write_bytes(lines[0] + lines[1].replace(b"lamp", b"l\xe4mp") + lines[2])
    assert refused().startswith("train.jsonl:2: not UTF-8: byte 0xe4 at column ")


def test_a_malformed_json_line_is_named(refused, project):
    with (project / "train.jsonl").open("a") as file:
        file.write('{"id": "x", "text": \n')
    assert refused().startswith(f"train.jsonl:{len(TRAIN) + 1}: not JSON: ")


# --- configuration ------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize(
    ("section", "setting", "reason"),
    [
        (
            "training",
            {"accelerator": "gpu"},
            "training.accelerator is gpu, and this machine or this build of torch has",
        ),
        (
            "training",
            {"accelerator": "gpus"},
            "unknown training.accelerator 'gpus'; did you mean 'gpu'? choices: auto,",
        ),
        ("evaluation", {"device": "cuda"}, "evaluation.device is cuda, and this machine or this build of torch has"),
    ],
)
def test_a_device_that_is_not_here_is_named_before_the_base_model_is_fetched(
    section, setting, reason, refused, project
):
    write_config(project, **{section: setting})
    assert refused("retrain", "--config", "run.yaml", "--first").startswith(reason)


def test_an_unknown_key_is_suggested_with_its_line(refused, project):
    write_config(project, "training:\n  densty: 0.1\n")
    line = (project / "run.yaml").read_text().splitlines().index("  densty: 0.1") + 1
    assert refused().startswith(f"run.yaml:{line}: unknown key 'training.densty'; did you mean 'density'? choices: ")


def test_all_errors_of_a_configuration_are_reported_at_once(refused, project):
    (project / "run.yaml").write_text("training:\n  epochs: four\n  density: 1.5\nregistri: {}\nslot: [a]\n")
    problems = refused().splitlines()
    assert [problem.partition(": ")[0] for problem in problems] == ["run.yaml:2", "run.yaml:4", "run.yaml:5"]


@pytest.mark.parametrize("value", [0, -0.1, 1.5, 5])
def test_a_density_out_of_range_is_refused(refused, project, value):
    write_config(project, training={"density": value})
    error = refused()
    assert f"training.density must be in (0, 1], got {value:g}" in error
    assert ("; did you mean" in error) == (value > 1)


def test_a_density_out_of_range_is_refused_as_an_option_too(refused):
    assert refused("retrain", "--config", "run.yaml", "--training.density", "1.5") == (
        "training.density must be in (0, 1], got 1.5; did you mean 0.015?\n"
    )


def test_a_missing_configuration_is_named(refused):
    assert refused("retrain", "--config", "ru.yaml") == "ru.yaml: no such configuration file\n"


def test_an_unknown_shipped_configuration_is_suggested(refused):
    assert "did you mean 'support_routing'?" in refused("retrain", "--config", "support_rooting")


def test_an_unknown_selector_is_suggested_before_anything_runs(refused, project):
    write_config(project, training={"selector": "fischer"})
    assert refused().startswith("unknown selector 'fischer'; did you mean 'fisher'? choices: ")


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"devices": 2}, "training.devices must be 1, got 2"),
        ({"precision": "bf16-true"}, "use bf16-mixed"),
        ({"precision": "bf16-mix"}, "did you mean 'bf16-mixed'?"),
        ({"strategy": "dpp"}, "did you mean 'ddp'?"),
    ],
)
def test_training_that_the_rest_of_the_path_cannot_follow_is_refused(refused, project, training, message):
    write_config(project, training=training)
    assert message in refused()


def test_an_unknown_policy_is_suggested(refused, project):
    write_config(project, policy="standart")
    assert "'standart'; did you mean 'standard'? choices: elsewhere, free_text, pilot, standard, strict" in refused()


# --- options ------------------------------------------------------------------------------------


def test_unknown_options_are_suggested_all_at_once(refused):
    assert refused("retrain", "--config", "run.yaml", "--training.epoch", "4", "--data.tran=x") == (
        "unknown option '--training.epoch'; did you mean '--training.epochs'? 'sparsegate retrain --help' lists all\n"
        "unknown option '--data.tran'; did you mean '--data.train'? 'sparsegate retrain --help' lists all\n"
    )


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("training.epochs", "four", "training.epochs must be a whole number, got 'four'"),
        ("training.learning_rate", "high", "training.learning_rate must be a number or null, got 'high'"),
        ("training.cache_prefix", "maybe", "training.cache_prefix must be true or false, got 'maybe'"),
        ("data.task", "sorting", "data.task must be one of classification, generation, got 'sorting'"),
        ("data.slice_columns", "a b", "data.slice_columns must be a list, such as [a, b], got 'a b'"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_in_plain_words(refused, option, value, complaint):
    assert refused("retrain", "--config", "run.yaml", f"--{option}", value) == f"{complaint}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("retrain", "stray"),
        ("retrain", "--config"),
        ("retrain", "--training.epochs"),
        ("gate",),
        ("gate", "a", "b"),
        ("register", "--jso", "runs/x"),
        ("bench", "--steps", "many"),
        ("bench", "--stepz", "3"),
    ],
)
def test_wrong_arguments_end_in_one_line(refused, arguments):
    assert refused(*arguments).count("\n") == 1


def test_a_signing_key_that_is_not_there_is_found_before_training(project, refused):
    write_config(project, registry={"signing_key": "none.pem"})
    assert refused() == "key file none.pem can't be read: No such file or directory\n"


def test_an_unknown_verb_is_suggested(refused):
    assert refused("retain") == (
        f"unknown verb 'retain'; did you mean 'retrain'? choices: {', '.join(sorted(VERBS))}\n"
    )


@pytest.mark.parametrize("verb", ["gate", "register"])
def test_a_folder_that_is_no_run_is_refused(refused, project, verb):
    assert refused(verb, "runs/x") == (
        "runs/x is not the folder of a run; it must hold config.json and manifest.json\n"
    )


# --- surroundings -------------------------------------------------------------------------------


def test_a_base_model_folder_that_does_not_exist_is_named(refused, project):
    assert refused() == f"model folder {project / 'base'} does not exist\n"


def test_a_base_model_without_weights_is_refused(refused, project, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    write_config(project, model={"source": str(tmp_path / "empty")})
    assert refused() == f"{tmp_path / 'empty'} has no *.safetensors weights\n"


def test_a_file_in_place_of_the_output_folder_is_named(refused, project):
    (project / "taken").write_text("a file")
    write_config(project, output_dir="taken/runs")
    assert "output_dir taken/runs can't be written" in refused()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_without_permission_is_named(refused, project):
    (project / "locked").mkdir(mode=0o500)
    write_config(project, output_dir="locked/runs")
    assert "output_dir locked/runs can't be written" in refused()


def test_a_tracking_server_that_does_not_answer_is_named_before_training(refused, project):
    write_config(project, registry={"tracking_uri": "http://someone:secret@127.0.0.1:1"})
    error = refused()
    assert "127.0.0.1:1 can't be reached: Connection refused; start it, or correct registry.tracking_uri" in error
    assert "secret" not in error


def test_a_tracking_folder_is_refused_with_the_uri_to_use(refused, project):
    write_config(project, registry={"tracking_uri": "mlruns"})
    assert "use 'sqlite:///mlruns/mlflow.db'" in refused()


# --- help ---------------------------------------------------------------------------------------


def test_no_arguments_print_the_help(capsys):
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert all(f"\n  {verb} " in out for verb in VERBS)
    assert err == ""


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    out, err = capsys.readouterr()
    assert f"sparsegate {verb}" in out
    assert err == ""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["retrain", "--help"], ["retrain", "--training.x", "1"]]
)
def test_help_and_wrong_options_answer_without_heavy_imports(arguments):
    code = (
        "import sys; from sparsegate.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'mlflow', 'great_expectations', 'lightning', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_the_command_ends_with_the_code_of_the_verb(project):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "sparsegate.cli", "retain"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=project, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("sparsegate: unknown verb 'retain'")
    assert {path.name for path in Path(project).iterdir()} == {"train.jsonl", "evaluation.jsonl", "run.yaml"}
