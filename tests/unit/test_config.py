import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Literal

import pytest

import sparsegate
from sparsegate import config as config_module
from sparsegate.config import DataConfig, RunConfig, TrainingConfig, check_rules
from sparsegate.config_file import load, shipped_config
from sparsegate.errors import ConfigError, ExitCode
from sparsegate.workflow.bench.quality.config import QualityConfig
from sparsegate.workflow.pilot.config import PilotConfig

SHIPPED = sorted(Path(inspect.getfile(sparsegate)).with_name("configs").glob("*.yaml"))


@pytest.fixture
def problems(tmp_path):
    """Gives the problems of a file's text, without the path before the line."""

    def problems(text, config_type=RunConfig):
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            load(path, config_type)
        assert caught.value.exit_code is ExitCode.USAGE
        return [problem.removeprefix(f"{path}:") for problem in caught.value.problems]

    return problems


@pytest.fixture
def read(tmp_path):
    def read(text, config_type=RunConfig):
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return load(path, config_type)

    return read


def test_all_problems_are_reported_at_once_with_line_field_rule_and_value(problems):
    text = """\
data:
  validation_fraction: 0.9
  task: clasification
training:
  densty: 0.1
  epochs: many
  batch_size: 0
  epochs: 3
safety: none
slots: monday
"""
    assert problems(text) == [
        "3: data.task got 'clasification'; did you mean 'classification'? choices: classification, generation",
        "5: unknown key 'training.densty'; did you mean 'density'? choices: "
        + ", ".join(sorted(entry.name for entry in fields(TrainingConfig))),
        "6: training.epochs must be a whole number, got 'many'",
        "8: 'training.epochs' stands twice; keep one",
        "9: safety must be a mapping of fields",
        "10: unknown key 'slots'; did you mean 'slot'? choices: "
        + ", ".join(sorted(entry.name for entry in fields(RunConfig))),
    ]


def test_broken_rules_of_all_parts_are_reported_at_once_at_their_lines(problems):
    text = """\
training:
  seed: 3
  density: 1.5
  batch_size: 0
data:
  max_tokens: 2
safety: {mix_fraction: 0.95}
"""
    assert problems(text) == [
        "3: training.density must be in (0, 1], got 1.5; did you mean 0.015?",
        "4: training.batch_size must be at least 1, got 0",
        "6: data.max_tokens must be at least 8, got 2",
        "7: safety.mix_fraction must be in [0, 0.9], got 0.95",
    ]


@pytest.mark.parametrize(
    ("value", "ending"),
    [("0", "got 0"), ("-0.1", "got -0.1"), ("5", "got 5; did you mean 0.05?"), ("101", "got 101"), ("nan", "got nan")],
)
def test_a_density_out_of_range_is_refused_and_a_percentage_is_recognised(problems, value, ending):
    assert problems(f"training:\n  density: {value}\n") == [f"2: training.density must be in (0, 1], {ending}"]


@pytest.mark.parametrize(
    "text",
    [
        "frozen_depth: 1.0",
        "frozen_depth: -0.1",
        "learning_rate: 0",
        "learning_rate: 1.5",
        "warmup_fraction: 1.1",
        "weight_decay: -1",
        "epochs: 0",
        "max_steps: 0",
        "max_steps: -2",
        "batch_size: 0",
        "accumulate_batches: 0",
        "gradient_clip: 0",
        "calibration_batches: 0",
        "devices: 0",
        "cache_disk_gb: -1",
        "checkpoint_every_steps: 0",
        "density: .inf",
        "memory_limit_gb: 0",
        "memory_limit_gb: .nan",
        "time_limit: 1.5",
        "frozen_depth: 1",
    ],
)
def test_every_rule_of_training_names_its_field(problems, text):
    (problem,) = problems(f"training:\n  {text}\n")
    assert problem.startswith(f"2: training.{text.split(':')[0]} must be ")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("training: {epochs: 1.5}", "training.epochs must be a whole number, got '1.5'"),
        ("training: {epochs: true}", "training.epochs must be a whole number, got 'true'"),
        ("training: {epochs: 08}", "training.epochs must be a whole number, got '08'"),
        ("training: {epochs: 010}", "training.epochs must be a whole number, got '010'"),
        ("training: {epochs: 1:30}", "training.epochs must be a whole number, got '1:30'"),
        ("training: {epochs: [1]}", "training.epochs must be a single value, got a list"),
        ("training: {frozen_depth: atuo}", "training.frozen_depth must be a number or auto, got 'atuo'"),
        (
            "training: {allocation: globl}",
            "training.allocation got 'globl'; did you mean 'global'? choices: global, rank, uniform",
        ),
        ("training: {density: high}", "training.density must be a number, got 'high'"),
        ("training: {weight_decay: }", "training.weight_decay must be a number, got ''"),
        ("training: {cache_prefix: 1}", "training.cache_prefix must be true or false, got '1'"),
        ("data: {slice_columns: channel}", "data.slice_columns must be a list, got 'channel'"),
        ("data: {slice_columns: {a: b}}", "data.slice_columns must be a list, got a mapping"),
        ("data: {slice_columns: [[a]]}", "data.slice_columns[0] must be a single value, got a list"),
        ("data: {train: null}", "data.train must be text, got 'null'"),
        ("- data", "the file must be a mapping of fields"),
        ("just text", "the file must be a mapping of fields"),
    ],
)
def test_wrong_types_are_refused_with_what_was_wanted(problems, text, problem):
    assert problems(text) == [f"1: {problem}"]


def test_values_are_read_as_their_types(read):
    config = read(
        """\
training: {learning_rate: 1e-4, density: 1, epochs: 1_000, cache_prefix: no, support: element, seed: 0x10}
data: {slice_columns: [channel, 2024], evaluation: null, id_column: 7}
safety: {limit: ~}
slot: 2024-05-01
"""
    )
    assert config.training == TrainingConfig(
        learning_rate=1e-4, density=1.0, epochs=1000, cache_prefix=False, support="element", seed=16
    )
    assert config.data == DataConfig(slice_columns=("channel", "2024"), id_column="7")
    assert config.safety.limit is None
    assert config.slot == "2024-05-01"


def test_a_budget_is_given_in_one_way(problems, read):
    assert read("training: {memory_limit_gb: 1.5, frozen_depth: auto}").training == TrainingConfig(
        memory_limit_gb=1.5, frozen_depth="auto"
    )
    assert problems("training:\n  density: 0.1\n  time_limit: 0.5\n") == [
        "3: training.time_limit: give one of density, memory_limit_gb, time_limit, got density and time_limit"
    ]


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}"])
def test_an_empty_file_gives_the_defaults(read, text):
    assert read(text) == RunConfig()


def test_what_a_file_leaves_out_keeps_its_default(read):
    config = read("training:\n  epochs: 5\n")
    assert config == replace(RunConfig(), training=TrainingConfig(epochs=5))


def test_files_that_can_not_be_read_are_one_clear_error(tmp_path):
    (tmp_path / "broken.yaml").write_text("training: {epochs: 1")
    (tmp_path / "bytes.yaml").write_bytes(b"slot: \xff")
    for name, message in [
        ("none.yaml", r"none.yaml: no such configuration file"),
        ("broken.yaml", r"broken.yaml: not YAML: .*line 1"),
        ("bytes.yaml", r"bytes.yaml: can't be read"),
    ]:
        with pytest.raises(ConfigError, match=message):
            load(tmp_path / name)
    with pytest.raises(ConfigError, match="can't be read"):
        load(tmp_path)


def test_a_python_object_in_yaml_is_not_built(problems):
    (problem,) = problems("slot: !!python/object/apply:os.getcwd []\n")
    assert problem == "1: slot must be a single value, got a list"


# --- other dataclasses, as policies use them ----------------------------------------------------


@dataclass(frozen=True)
class Settings:
    minimum: int
    kind: Literal["a", "b"] = "a"
    bounds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Policy:
    gate: Settings | None = None


def test_nested_optional_blocks_and_mappings_are_read(read):
    policy = read("gate: {minimum: 3, bounds: {email: 0.5, chat: 1}}", Policy)
    assert policy == Policy(Settings(3, bounds={"email": 0.5, "chat": 1.0}))
    assert read("gate: null", Policy) == Policy(None)


def test_a_missing_required_field_is_reported_at_its_block(problems):
    assert problems("\ngate:\n  kind: b\n", Policy) == ["3: 'gate.minimum' is missing"]


def test_a_wrong_entry_of_a_mapping_is_named(problems):
    assert problems("gate: {minimum: 1, bounds: {email: low}}", Policy) == [
        "1: gate.bounds.email must be a number, got 'low'"
    ]
    assert problems("gate: {minimum: 1, bounds: 3}", Policy) == ["1: gate.bounds must be a mapping, got '3'"]


# --- configurations made in Python, and shipped ones --------------------------------------------


def test_check_rules_reports_every_broken_rule_of_a_configuration_made_in_python():
    config = RunConfig(training=TrainingConfig(density=2, epochs=0), data=DataConfig(max_tokens=1))
    with pytest.raises(ConfigError) as caught:
        check_rules(config)
    assert caught.value.problems == (
        "data.max_tokens must be at least 8, got 1",
        "training.density must be in (0, 1], got 2; did you mean 0.02?",
        "training.epochs must be at least 1, got 0",
    )
    check_rules(RunConfig())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_loads_and_opens_with_its_command(path):
    command = path.read_text(encoding="utf-8").splitlines()[0]
    assert command.startswith("# sparsegate ")
    kinds = {"--quality": QualityConfig, "pilot": PilotConfig}
    kind = next((kind for word, kind in kinds.items() if word in command.split()), RunConfig)
    check_rules(load(path, kind))
    assert shipped_config(path.stem) == path


def test_a_configuration_is_found_by_name_or_path_and_an_unknown_name_suggests():
    assert shipped_config("my/own.yaml") == Path("my/own.yaml")
    with pytest.raises(ConfigError, match=r"unknown configuration 'support_rooting'; did you mean 'support_routing'\?"):
        shipped_config("support_rooting")


def test_every_field_of_every_configuration_is_documented():
    parts = [part for part in vars(config_module).values() if is_dataclass(part)]
    assert len(parts) >= 7
    for part in parts:
        documented = inspect.getdoc(part)
        for entry in fields(part):
            assert f"    {entry.name}: " in documented, f"{part.__name__}.{entry.name}"


# --- overrides on the command line --------------------------------------------------------------


@pytest.fixture
def parse():
    from sparsegate.config_options import parse_config

    return lambda *arguments: parse_config("retrain", arguments)[0]


def test_options_override_fields_of_the_file_and_leave_the_others(parse, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("training: {epochs: 5, density: 0.2}\ndata: {slice_columns: [channel]}\nslot: monday\n")
    config = parse("--config", str(path), "--training.epochs", "7", "--training.learning_rate=1e-4")
    assert config == RunConfig(
        training=TrainingConfig(epochs=7, density=0.2, learning_rate=1e-4),
        data=DataConfig(slice_columns=("channel",)),
        slot="monday",
    )


def test_without_a_file_options_override_the_defaults(parse):
    config = parse("--training.support", "element", "--data.slice_columns", '["channel","lang"]', "--slot", "x")
    assert config == RunConfig(
        training=TrainingConfig(support="element"), data=DataConfig(slice_columns=("channel", "lang")), slot="x"
    )


def test_an_override_is_checked_by_the_same_rules(parse):
    with pytest.raises(ConfigError, match=r"training.density must be in \(0, 1\], got 10; did you mean 0.1\?"):
        parse("--training.density", "10")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--training.epochs", "many"], "training.epochs"),
        (["--training.densty", "0.1"], "densty"),
        (["--training.support", "diagonal"], "training.support"),
        (["stray"], "stray"),
    ],
)
def test_an_override_that_can_not_be_used_is_a_usage_error_that_names_it(parse, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse(*arguments)
    assert caught.value.exit_code is ExitCode.USAGE


def test_the_printed_configuration_reads_back_as_the_same(parse, read, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("--config", "support_routing", "--training.density", "0.3", "--print_config")
    assert stopped.value.code == ExitCode.PASSED
    config = read(capsys.readouterr().out)
    assert config.training.density == 0.3
    assert asdict(config) == asdict(parse("--config", "support_routing", "--training.density", "0.3"))


@pytest.mark.parametrize(
    ("given", "density", "frozen_depth", "selector"),
    [
        ({}, 0.2, 0.334, "random"),
        ({"preset": "lean"}, 0.1, 0.667, "random"),
        ({"preset": "lean", "density": 0.5, "selector": "lift"}, 0.5, 0.667, "lift"),
        ({"frozen_depth": 0.0}, 0.2, 0.0, "random"),
        ({"frozen_depth": "auto"}, 0.2, "auto", "fisher"),
        ({"preset": "lean", "frozen_depth": "auto"}, 0.1, "auto", "fisher"),
        ({"time_limit": 0.3}, None, 0.334, "random"),
        ({"preset": "lean", "memory_limit_gb": 1.0}, None, 0.667, "random"),
    ],
)
def test_a_preset_says_what_is_not_given(given, density, frozen_depth, selector):
    resolved = TrainingConfig(**given).resolved()
    assert (resolved.density, resolved.frozen_depth, resolved.selector) == (density, frozen_depth, selector)
