"""What the README tells people to type works."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sparsegate.cli import VERBS, main
from sparsegate.config import RunConfig
from sparsegate.config_file import load

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def _blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def _sparsegate_lines():
    lines = [line for block in _blocks("console") for line in block.splitlines()]
    return [line.split("#")[0].strip() for line in lines if line.startswith("sparsegate ")]


def test_the_two_commands_are_the_ones_tox_knows():
    commands = [block.strip() for block in _blocks("console")]
    assert "python -m pip install tox && tox run -e retrain" in commands
    assert "python -m pip install tox && tox run" in commands
    tox_ini = (Path(__file__).parents[2] / "tox.ini").read_text(encoding="utf-8")
    assert "[testenv:retrain]" in tox_ini


def test_every_verb_is_in_the_readme():
    for verb in VERBS:
        assert f"`{verb}" in README


def test_the_example_configuration_is_valid(tmp_path):
    text = next(block for block in _blocks("yaml") if "tickets.yaml" in block and "prompt_column" in block)
    path = tmp_path / "tickets.yaml"
    path.write_text(text, encoding="utf-8")
    config = load(path, RunConfig)
    assert config.data.slice_columns == ("country",)
    assert yaml.safe_load(text)["registry"]["name"] == config.registry.name


@pytest.mark.parametrize("line", [line for line in _sparsegate_lines() if "--config" in line])
def test_commands_of_the_readme_parse(line, tmp_path, capsys):
    text = next(block for block in _blocks("yaml") if "prompt_column" in block)
    (tmp_path / "tickets.yaml").write_text(text, encoding="utf-8")
    words = [str(tmp_path / word) if word == "tickets.yaml" else word for word in shlex.split(line)[1:]]
    with pytest.raises(SystemExit) as stopped:
        main([*(word for word in words if word != "--json"), "--print_config"])
    assert stopped.value.code == 0
    assert "ticket-routing" in capsys.readouterr().out


@pytest.mark.parametrize("line", [line for line in _sparsegate_lines() if line.startswith("sparsegate init")])
def test_the_new_project_of_the_readme_is_written(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(line)[1:]) == 0
    assert (tmp_path / "tickets" / "run.yaml").exists()


@pytest.mark.real_model
def test_fifteen_lines_of_python_train_and_write_a_delta(tmp_path):
    code = next(block for block in _blocks("python") if "L.Trainer" in block)
    statements = [line for line in code.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(statements) <= 15
    # the README trains 20 steps; 2 show the same
    short = code.replace("max_steps=20", "max_steps=2")
    assert short != code
    done = subprocess.run([sys.executable, "-c", short], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    from sparsegate.sparse.delta import read_delta

    delta = read_delta(tmp_path / "delta.safetensors")
    assert all(entry.kind == "column" for entry in delta.entries.values())
    assert any(not entry.new.equal(entry.old) for entry in delta.entries.values())
