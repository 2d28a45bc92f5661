"""``sparsegate train --find_lr`` on a tiny model in a folder."""

import json
import logging

import pytest
import yaml

from sparsegate.cli import main

LABELS = ["w6", "w7", "w8"]
CHAT = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


@pytest.fixture
def project(tmp_path, monkeypatch, tiny_model, tiny_tokenizer):
    """A folder with a base model, data and ``run.yaml``, in which commands run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEGATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    tiny_tokenizer.chat_template = CHAT
    tiny_model.save_pretrained("base")
    tiny_tokenizer.save_pretrained("base")
    rows = [
        {"prompt": f"w{2 + number % 4} w{10 + number} w{20 + number % 7}", "response": LABELS[number % 3]}
        for number in range(48)
    ]
    for name, part in (("train", rows[:36]), ("evaluation", rows[36:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in part))
    config = {
        "model": {"source": "base"},
        "data": {"train": "train.jsonl", "evaluation": "evaluation.jsonl"},
        "training": {"preset": "lean", "batch_size": 4, "accelerator": "cpu"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    loggers = [logging.getLogger(name) for name in ("sparsegate", "sparsegate_gates")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    yield tmp_path
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_find_lr_prints_suggestion_and_default_and_leaves_one_file(project, capsys):
    assert main(["train", "--config", "run.yaml", "--find_lr", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    (path,) = (project / "runs").iterdir()
    found = json.loads(path.read_text())
    assert path.name.endswith(".learning_rate.json")
    assert 1e-6 < found["suggested"] < 0.1
    assert result["cost"] is None
    assert result["message"].startswith(
        f"learning rate: {found['suggested']:.2g} by the range test, {found['default']:.2g} by default"
        f" (density 0.1, layers from 2); nothing was trained, see {path}."
    )
    assert f"--training.learning_rate {found['suggested']:.2g}" in result["message"]
    assert not (project / "mlflow.db").exists()


def test_find_lr_is_an_option_of_train_only(project, capsys):
    assert main(["retrain", "--config", "run.yaml", "--find_lr"]) == 2
    assert "unknown option '--find_lr'" in capsys.readouterr().err


def test_the_help_of_train_says_that_find_lr_trains_nothing(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "Nothing is trained or registered" in " ".join(capsys.readouterr().out.split())
