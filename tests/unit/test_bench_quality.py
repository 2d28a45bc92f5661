"""The quality benchmark's protocol: who is trained on what, rates, resuming, failures, and what is made of it all."""

from __future__ import annotations

import json
import random
import runpy
from collections.abc import Callable
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from sparsegate import cli
from sparsegate.config_file import load
from sparsegate.contracts import Sample, Task
from sparsegate.data import normalise
from sparsegate.errors import ConfigError, DataError, ExitCode, LockedError
from sparsegate.workflow.bench.options import parse_sparse
from sparsegate.workflow.bench.quality import plot, runner
from sparsegate.workflow.bench.quality.config import GeneralText, QualityConfig, QualityData
from sparsegate.workflow.bench.quality.job import Outcome, Point, QualityJob
from sparsegate.workflow.bench.quality.rates import search_rates
from sparsegate.workflow.bench.quality.records import RunRecord
from sparsegate.workflow.bench.quality.run import Setting, run_quality
from sparsegate.workflow.bench.quality.runner import ask_process
from sparsegate.workflow.bench.quality.samples import draw, split
from sparsegate.workflow.bench.quality.summary import QualityReport, summarise
from sparsegate.workflow.bench.quality.table import print_quality
from sparsegate.workflow.lock import model_lock

_RATES = {"full-ours": (1e-4, 1e-2), "lora": (1e-3,), "sparse": (1e-3, 1e-2)}
_BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
_METHODS = ("full-ours", "lora", "sparse:column:cut=0.5:cached")


def _rows(count: int, *, seed: int = 0, sign: str = "") -> list[dict[str, str]]:
    pick = random.Random(seed)
    first = [pick.randrange(10, 90) for _ in range(count)]
    return [
        {"prompt": f"w{word} w{number % 80 + 10} w{number // 80 + 10}{sign}", "response": f"w{4 + word % 2}"}
        for number, word in enumerate(first)
    ]


def _write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def config(tmp_path: Path, tiny_model, tiny_tokenizer) -> QualityConfig:
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    text = tmp_path / "general.txt"
    text.write_text(" ".join(f"w{number % 90 + 2}" for number in range(40)), encoding="utf-8")
    data = QualityData(
        _write(tmp_path / "train.jsonl", _rows(100)), train_sizes=(12,), validation_size=10, evaluation_size=20
    )
    return QualityConfig(
        data={"words": data},
        methods=_METHODS,
        learning_rates=_RATES,
        output=str(tmp_path / "out" / "quality.jsonl"),
        model=str(tmp_path / "model"),
        seeds=(0, 1),
        steps=4,
        batch_size=4,
        evaluate_at=(0.5,),
        general_text=GeneralText(str(text)),
        threads=1,
    )


def _outcome(quality: float = 0.5, *, nll: float = 1.0, forgot: float = 10.0, seconds: float = 4.0) -> Outcome:
    points = (Point(2, seconds / 2, 20, quality - 0.1, nll), Point(4, seconds, 40, quality, nll))
    return Outcome(points, forgot, None, 0.5, 1_000_000, 10, "order")


class Worker:
    """Stands for the processes: keeps the jobs, and answers with what ``answer`` says."""

    def __init__(self, answer: Callable[[QualityJob], Outcome | str] = lambda job: _outcome()) -> None:
        self.jobs: list[QualityJob] = []
        self._answer = answer

    def __call__(self, job: QualityJob) -> Outcome | str:
        self.jobs.append(QualityJob.from_json(json.loads(json.dumps(asdict(job)))))
        return self._answer(job)


# --- the samples --------------------------------------------------------------------------------


def test_no_prompt_stands_in_two_parts_whatever_its_case_and_signs(tmp_path: Path) -> None:
    rows = [*_rows(100), *_rows(100, sign="?!")]
    data = QualityData(
        _write(tmp_path / "t.jsonl", rows), train_sizes=(50,), validation_size=15, evaluation_size=21, max_tokens=64
    )
    parts = split("words", data)
    prompts = [
        {normalise(sample.prompt) for sample in part} for part in (parts.pool, parts.validation, parts.evaluation)
    ]
    assert not prompts[0] & prompts[1]
    assert not prompts[0] & prompts[2]
    assert not prompts[1] & prompts[2]


def test_a_file_of_its_own_gives_the_evaluation_samples_and_its_prompts_are_not_trained_on(tmp_path: Path) -> None:
    train, evaluation = _write(tmp_path / "t.jsonl", _rows(60)), _write(tmp_path / "e.jsonl", _rows(20))
    data = QualityData(train, evaluation=evaluation, train_sizes=(30,), validation_size=10, evaluation_size=20)
    parts = split("words", data)
    assert len(parts.evaluation) == 20
    assert len(parts.pool) == 60 - 20 - 10


def test_fewer_training_samples_are_a_part_of_more_and_seeds_draw_others() -> None:
    pool = [Sample(str(number), f"prompt {number}", "x") for number in range(50)]
    few, many = draw(pool, 5, seed=0), draw(pool, 20, seed=0)
    assert few == many[:5]
    assert draw(pool, 5, seed=1) != few


def test_too_few_samples_are_an_error_with_the_counts(config: QualityConfig) -> None:
    data = replace(config.data["words"], train_sizes=(80,))
    with pytest.raises(DataError, match=r"70 for the largest of train_sizes, 80"):
        run_quality(replace(config, data={"words": data}), ask_one=Worker())


# --- the protocol -------------------------------------------------------------------------------


def test_a_search_is_never_given_an_evaluation_sample(config: QualityConfig) -> None:
    worker = Worker()
    (setting,) = run_quality(config, ask_one=worker)
    parts = split("words", config.data["words"])
    evaluation, validation = ({sample.id for sample in part} for part in (parts.evaluation, parts.validation))
    num_searches = len(setting.searches)
    searches, finals = worker.jobs[1 : 1 + num_searches], worker.jobs[1 + num_searches :]
    assert (len(searches), len(finals)) == (4, 6)
    for job in searches:
        assert {row["id"] for row in job.judged.samples} == validation
        assert not {row["id"] for row in job.train} & (evaluation | validation)
        assert job.seed == 0
        assert job.general is None
    for job in finals:
        assert {row["id"] for row in job.judged.samples} == evaluation
        assert not {row["id"] for row in job.train} & (evaluation | validation)


def test_all_methods_are_given_the_same_samples_and_finals_run_in_turn(config: QualityConfig) -> None:
    worker = Worker()
    run_quality(config, ask_one=worker)
    finals = worker.jobs[-6:]
    assert [(job.seed, job.method) for job in finals] == [(seed, method) for seed in (0, 1) for method in _METHODS]
    assert finals[0].train == finals[1].train == finals[2].train
    assert finals[0].train != finals[3].train


def test_all_seeds_run_at_the_rate_that_did_best_on_validation(config: QualityConfig) -> None:
    def answer(job: QualityJob) -> Outcome:
        return _outcome(0.9 if job.learning_rate == 1e-2 and job.judge_at == [4] else 0.5)

    (setting,) = run_quality(config, ask_one=Worker(answer))
    rates = {record.method: record.learning_rate for record in setting.finals}
    assert rates == {"full-ours": 1e-2, "lora": 1e-3, "sparse:column:cut=0.5:cached": 1e-2}


def _record(outcome: Outcome | None = None, **changes: object) -> RunRecord:
    error = "" if outcome else "out of memory"
    found = asdict(outcome) if outcome else None
    values = {"purpose": "final", "data": "words", "size": 12, "method": "lora", "learning_rate": 1e-3, "seed": 0}
    values |= {"key": json.dumps(changes, default=str), "error": error, "wall_seconds": 1.0, "outcome": found}
    return RunRecord(**{**values, "environment": {"model": "m", "processor": "P", "torch": "2"}, **changes})


def _search(
    found: dict[float, Outcome | None], *, first: int, task: Task = "classification"
) -> tuple[float | None, list[float], int]:
    """Search among the first rates; return the best, all that were tried, and how many more were expected."""
    expected = [0]

    def try_rate(rate: float) -> RunRecord:
        return _record(found[rate], learning_rate=rate)

    best, tried = search_rates(list(found)[:first], try_rate, task=task, expect=expected.append)
    return best, [record.learning_rate for record in tried], sum(expected)


def test_of_equal_accuracies_the_lower_loss_is_best_and_failures_are_never_best() -> None:
    found = {0.1: _outcome(0.6, nll=2.0), 0.2: _outcome(0.7, nll=1.0), 0.3: _outcome(0.7, nll=1.5), 0.4: None}
    assert _search(found, first=4) == (0.2, [0.1, 0.2, 0.3, 0.4], 0)
    perplexities = {0.1: _outcome(0.7, nll=0.5), 0.2: _outcome(0.6, nll=1.0), 0.3: _outcome(0.6, nll=0.9), 0.4: None}
    assert _search(perplexities, first=4, task="generation")[0] == 0.3
    assert _search({0.1: None, 0.2: None}, first=2) == (None, [0.1, 0.2], 0)


def test_a_best_rate_at_an_end_is_looked_for_beyond_it() -> None:
    rising = {0.1: _outcome(0.1), 0.3: _outcome(0.2), 0.9: _outcome(0.3), 2.7: _outcome(0.4), 8.1: _outcome(0.5)}
    assert _search(rising, first=2) == (2.7, [0.1, 0.3, 0.9, 2.7], 2)
    assert _search({**rising, 0.9: _outcome(0.1)}, first=2) == (0.3, [0.1, 0.3, 0.9], 1)
    assert _search({**rising, 0.9: None}, first=2) == (0.3, [0.1, 0.3, 0.9], 1)
    assert _search({**rising, 0.3: _outcome(0.1)}, first=2) == (0.1, [0.1, 0.3], 0)  # no better than its neighbour
    falling = {0.2: _outcome(0.3), 0.4: _outcome(0.2), 0.1: _outcome(0.2)}
    assert _search(falling, first=2) == (0.2, [0.2, 0.4, 0.1], 1)
    assert _search({0.1: _outcome(0.1), 0.2: _outcome(0.3), 0.4: _outcome(0.2)}, first=3) == (0.2, [0.1, 0.2, 0.4], 0)


# --- resuming and failures ----------------------------------------------------------------------


def test_a_rerun_runs_only_what_is_not_there(config: QualityConfig) -> None:
    def interrupted(job: QualityJob) -> Outcome:
        if len(first.jobs) == 4:
            raise KeyboardInterrupt
        return _outcome()

    first = Worker(interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_quality(config, ask_one=first)
    second, third = Worker(), Worker()
    settings = run_quality(config, ask_one=second)
    assert len(second.jobs) == 11 - 3
    assert second.jobs[0] == first.jobs[3]
    recalled = run_quality(config, ask_one=third)
    assert third.jobs == []
    assert summarise(config, recalled) == summarise(config, settings)


def test_changed_settings_or_samples_run_again(config: QualityConfig) -> None:
    run_quality(config, ask_one=Worker())
    for changed in (replace(config, gradient_clip=0.5), replace(config, batch_size=5)):
        worker = Worker()
        run_quality(changed, ask_one=worker)
        assert len(worker.jobs) == 11
    _write(Path(config.data["words"].train), _rows(100, seed=1))
    worker = Worker()
    run_quality(config, ask_one=worker)
    assert len(worker.jobs) == 11


def test_a_failed_run_is_a_line_is_reported_and_is_tried_again(config: QualityConfig) -> None:
    def fails(job: QualityJob) -> Outcome | str:
        return "out of memory" if job.method == "lora" and job.seed == 1 else _outcome()

    report = summarise(config, run_quality(config, ask_one=Worker(fails)))
    lines = [json.loads(line) for line in Path(config.output).read_text(encoding="utf-8").splitlines()]
    assert [(line["method"], line["seed"]) for line in lines if line["error"]] == [("lora", 1)]
    assert report.exit_code is ExitCode.ERROR
    assert report.failures == ("words 12, lora, final at 0.001, seed 1: out of memory",)
    assert "failed words 12, lora, final at 0.001, seed 1: out of memory" in _render(report)
    again = Worker()
    assert summarise(config, run_quality(config, ask_one=again)).exit_code is ExitCode.PASSED
    assert [(job.method, job.seed) for job in again.jobs] == [("lora", 1)]
    assert len(Path(config.output).read_text(encoding="utf-8").splitlines()) == len(lines)


def test_a_rate_that_diverges_is_reported_and_the_others_are_chosen_from(config: QualityConfig) -> None:
    worker = Worker(lambda job: "training diverged" if job.learning_rate == 1e-2 else _outcome())
    report = summarise(config, run_quality(config, ask_one=worker))
    assert report.exit_code is ExitCode.PASSED
    assert len(report.failures) == 2
    assert [row.learning_rate for row in report.settings[0].rows] == [1e-4, 1e-3, 1e-3]


def test_a_method_whose_rates_all_fail_has_no_figures_and_the_report_says_so(config: QualityConfig) -> None:
    worker = Worker(lambda job: "training diverged" if job.method == "full-ours" else _outcome())
    report = summarise(config, run_quality(config, ask_one=worker))
    assert report.missing == ("words 12, full-ours: no learning rate worked",)
    assert report.exit_code is ExitCode.ERROR
    assert [row.method for row in report.settings[0].rows] == list(_METHODS[1:])


def test_two_benchmarks_never_write_the_same_results(config: QualityConfig) -> None:
    output = Path(config.output)
    output.parent.mkdir()
    with model_lock(output.parent, output.name), pytest.raises(LockedError):
        run_quality(config, ask_one=Worker())


def test_a_results_file_with_another_content_is_refused_by_line(config: QualityConfig) -> None:
    Path(config.output).parent.mkdir()
    Path(config.output).write_text('{"key": "x"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"quality.jsonl:1: not a RunRecord"):
        run_quality(config, ask_one=Worker())


# --- the summary --------------------------------------------------------------------------------


def _report(config: QualityConfig) -> QualityReport:
    runs = {("lora", 0): 0.8, ("lora", 1): 0.9, ("full-ours", 0): 0.85, ("full-ours", 1): 0.99}
    finals = [
        _record(_outcome(quality, forgot=12.0 + seed, seconds=10.0), method=method, seed=seed)
        for (method, seed), quality in runs.items()
    ]
    slow = _outcome(0.7, seconds=5.0)
    finals += [_record(slow, method=_METHODS[2], seed=seed, learning_rate=1e-2) for seed in (0, 1)]
    base = _record(_outcome(0.1, forgot=11.0), purpose="base", method="base", size=0)
    rate = next(record.learning_rate for record in finals if record.method == "lora")
    tried = [("lora", rate / 2), ("lora", rate), ("lora", rate * 2), (_METHODS[2], 1e-3), (_METHODS[2], 1e-2)]
    searches = [_record(slow, purpose="search", method=method, learning_rate=rate) for method, rate in tried]
    return summarise(config, [Setting("words", 12, "classification", base, tuple(searches), tuple(finals))])


def test_methods_are_compared_with_the_reference_seed_by_seed(config: QualityConfig) -> None:
    full, lora, sparse = _report(config).settings[0].rows
    assert lora.difference is None
    assert full.difference is not None
    assert full.difference.interval is not None
    assert full.difference.mean == pytest.approx((0.05 + 0.09) / 2)
    # t(0.975, 1) = 12.706, standard error (0.09 - 0.05) / 2
    assert full.difference.interval.high - full.difference.mean == pytest.approx(12.706 * 0.02, rel=1e-3)
    assert sparse.at_edge
    assert not lora.at_edge


def test_forgetting_is_the_rise_of_perplexity_above_the_base_model(config: QualityConfig) -> None:
    lora = _report(config).settings[0].rows[1]
    assert lora.forgetting is not None
    assert lora.forgetting.mean == pytest.approx((12.0 + 13.0) / 2 - 11.0)


def test_time_to_the_target_is_that_of_the_first_evaluation_as_good_as_the_reference_at_its_end(
    config: QualityConfig,
) -> None:
    full, lora, sparse = _report(config).settings[0].rows
    assert (lora.target_seconds, lora.target_time_ratio) == (10.0, 1.0)
    assert full.target_seconds == 10.0  # 0.75 and 0.89 half-way are not yet 0.8 and 0.9
    assert (sparse.reached, sparse.target_seconds, sparse.target_time_ratio) == (0, None, None)


def _render(report: QualityReport) -> str:
    text = StringIO()
    print_quality(report, Console(file=text, width=150, color_system=None))
    return text.getvalue()


def test_the_table_shows_means_intervals_and_what_was_not_reached(config: QualityConfig) -> None:
    text = _render(_report(config))
    assert max(map(len, text.splitlines())) <= 150
    assert "…" not in text
    assert "0.850" in text
    assert "0 of 2" in text
    assert "0.01*" in text


def test_plots_are_drawn_whole(config: QualityConfig, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the optional package matplotlib is not installed")
    plot.write_quality_plot(_report(config), tmp_path / "quality.png")
    assert (tmp_path / "quality.png").read_bytes().startswith(b"\x89PNG")


# --- the configuration and the command ----------------------------------------------------------

_GOOD = """\
data:
  words: {train: words.jsonl}
methods: [lora, "sparse:column"]
learning_rates: {lora: [1e-4], sparse: [1e-3]}
output: out.jsonl
steps: 10
"""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("lora, ", "lroa, "), r"3: methods: unknown method 'lroa'"),
        (('"sparse:column"', '"sparse:colum"'), r"unknown support 'colum'"),
        (("sparse: [1e-3]", "full: [1e-3]"), r"4: learning_rates: no method is called 'full'"),
        ((", sparse: [1e-3]", ""), r"learning_rates of 'sparse:column' must be one or more distinct rates"),
        (("[1e-3]", "[2]"), r"learning_rates of 'sparse:column' must be .* in \(0, 1\], got \[2.0\]"),
        (("steps: 10", ""), r"give one of steps and epochs"),
        (("steps: 10", "steps: 10\nepochs: 2"), r"6: give one of steps and epochs"),
        (("steps: 10", "steps: 0"), r"steps or epochs must be at least 1, got 0"),
        (("steps: 10", "steps: 10\nseeds: [1, 1]"), r"7: seeds must be one or more distinct numbers"),
        (("steps: 10", "steps: 10\nevaluate_at: [1.5]"), r"7: evaluate_at must lie in \(0, 1\]"),
        (("steps: 10", "steps: 10\nreference: full"), r"reference 'full' is not a method"),
        (("steps: 10", "steps: 10\nmodel: random:llama-tiny"), r"random:llama-tiny has no tokenizer"),
        (("words.jsonl", "words.jsonl, train_sizes: [0]"), r"2: data.words.train_sizes must be at least 1, got 0"),
        (("train:", "trian:"), r"unknown key 'data.words.trian'; did you mean 'train'\?"),
    ],
)
def test_a_bad_configuration_is_named_by_line_field_and_rule(
    change: tuple[str, str], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "quality.yaml"
    path.write_text(_GOOD, encoding="utf-8")
    load(path, QualityConfig)
    path.write_text(_GOOD.replace(*change), encoding="utf-8")
    with pytest.raises(ConfigError, match=reason):
        load(path, QualityConfig)


@pytest.mark.parametrize("part", ["train", "evaluation"])
def test_a_sample_that_does_not_fit_is_named_before_anything_runs(config: QualityConfig, part: str) -> None:
    data = config.data["words"]
    rows = _rows(100)
    held = data.train.replace("train.jsonl", "evaluation.jsonl")
    long = {"prompt": "w9", "response": "w4 " * 3000}
    _write(Path(data.train), [*rows, *([long] if part == "train" else [])])
    _write(Path(held), [*_rows(60, seed=1, sign=" w3"), *([long] if part == "evaluation" else [])])
    sizes = {
        "train_sizes": (90 + (part == "train"),),
        "validation_size": 10,
        "evaluation_size": 60 + (part == "evaluation"),
    }
    data = replace(data, task="generation", evaluation=held, **sizes)
    worker = Worker()
    with pytest.raises(DataError, match=r"data\.words: sample .*max_tokens"):
        run_quality(replace(config, data={"words": data}), ask_one=worker)
    assert worker.jobs == []


def test_a_job_runs_in_a_process_of_its_own(config: QualityConfig) -> None:
    worker = Worker()
    run_quality(config, ask_one=worker)
    found = ask_process(worker.jobs[0])
    assert isinstance(found, Outcome)
    assert 0 <= found.end.quality <= 1
    assert found.peak_memory_bytes > 0


def test_the_command_writes_every_form(
    config: QualityConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "ask", lambda job, *, worker, read: read(asdict(_outcome(0.75))))
    path, figures = tmp_path / "quality.yaml", tmp_path / "quality.json"
    values = asdict(config)
    del values["epochs"], values["general_skills"]
    path.write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML too
    code = cli.main(["bench", "--quality", str(path), "--json", str(figures)])
    shown = capsys.readouterr()
    assert code == ExitCode.PASSED
    assert "0.750" in shown.out
    lines = [line.split(" ", 1)[1] for line in shown.err.splitlines()]
    assert lines[0] == "words, base model: running"
    # the base model says nothing of what a training run takes
    assert lines[1].split("; ")[1] == f"runs left: {len(lines) // 2 - 1}"
    assert "about 0 min" in lines[3]
    assert lines[-1].endswith("runs left: 0, about 0 min")
    (setting,) = json.loads(figures.read_text(encoding="utf-8"))["settings"]
    assert [row["method"] for row in setting["rows"]] == list(_METHODS)
    assert setting["rows"][0]["quality"]["n"] == 2


def test_the_benchmark_on_public_data_loads_and_its_files_are_made_from_theirs(tmp_path: Path) -> None:
    configs = [load(path, QualityConfig) for path in _BENCHMARKS.glob("quality_*.yaml")]
    public, files = tmp_path / "public", tmp_path / "files"
    problem = json.dumps({"question": "2 + 2?", "answer": "4"})
    for name, text in (
        ("banking77/train.csv", 'text,category\n"Is it lost, or late?",card_arrival\n'),
        ("trec/TREC.train", "HUM:ind Who wrote Caf\xe9 ?\n"),
        ("gsm8k/train.jsonl", f"{problem}\n" * 401),
    ):
        (public / name).parent.mkdir(parents=True)
        (public / name).write_text(text, encoding="latin-1")
    runpy.run_path(str(_BENCHMARKS / "quality_data.py"))["write_data"](public, files)
    rows = {path.stem: [json.loads(line) for line in path.read_text("utf-8").splitlines()] for path in files.iterdir()}
    assert rows["banking77"] == [{"text": "Is it lost, or late?", "label": "card arrival"}]
    assert rows["trec"] == [{"text": "Who wrote Caf\xe9 ?", "label": "human"}]
    assert (len(rows["general_text"]), len(rows["gsm8k"])) == (400, 1)
    named = {data.train for config in configs for data in config.data.values()}
    named |= {config.general_text.source for config in configs} - {"builtin:general/text.jsonl"}
    assert {Path(name).name for name in named} == {path.name for path in files.iterdir()}


def test_the_experiment_on_selectors_holds_each_against_random_entries_of_the_same_shape_number_and_depth() -> None:
    config = load(_BENCHMARKS / "claims.yaml", QualityConfig)
    settings = [parse_sparse(method.removeprefix("sparse:")) for method in config.methods]
    assert {replace(setting, selector="random") for setting in settings} <= set(settings)


def test_the_command_refuses_options_of_the_other_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--quality", "quality_small", "--steps", "3"]) == ExitCode.USAGE
    assert "--steps" in capsys.readouterr().err
