"""The benchmark as a whole: processes of their own, failures as rows, rounds, table, JSON and plot."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from sparsegate import cli
from sparsegate.errors import ExitCode, UsageError
from sparsegate.workflow.bench import plot, run
from sparsegate.workflow.bench.options import BenchOptions
from sparsegate.workflow.bench.result import BenchReport, Measurement, Row, median
from sparsegate.workflow.bench.run import run_bench, run_job
from sparsegate.workflow.bench.table import render

_TINY = ["--model", "random:llama-tiny", "--batch_size", "2", "--tokens", "16", "--supervised", "4", "--steps", "1"]


def _figures(step_seconds: float = 2.0, peak: int = 1000) -> Measurement:
    return Measurement(
        step_seconds=step_seconds,
        forward_seconds=step_seconds / 2,
        backward_seconds=step_seconds / 2,
        optimizer_seconds=0.0,
        refresh_seconds=0.0,
        selection_seconds=0.5,
        peak_memory_bytes=peak,
        load_peak_memory_bytes=peak // 2,
        selection_peak_memory_bytes=peak,
        steps_peak_memory_bytes=peak // 2,
        trainable_parameters=10,
        total_parameters=100,
        trainable_state_bytes=160,
        saved_activation_bytes=300,
        artifact_bytes=80,
        first_loss_nats=3.0,
    )


def _report(*rows: Row) -> BenchReport:
    work = {**asdict(BenchOptions()), "methods": [row.method for row in rows]}
    environment = {"model": "random:llama-tiny", "processor": "P", "device": "cpu", "threads": 1, "torch": "2"}
    return BenchReport(work, environment, rows)


# --- the command --------------------------------------------------------------------------------


def test_the_command_measures_in_processes_of_their_own_and_writes_every_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="the optional package matplotlib is not installed")
    files = ["--json", str(tmp_path / "new" / "bench.json"), "--plot", str(tmp_path / "bench.png")]
    methods = "full-ours,sparse:column:cut=0.34:cached"
    code = cli.main(["bench", *_TINY, "--warmup", "1", "--threads", "1", "--methods", methods, *files])
    shown = capsys.readouterr()
    assert code == ExitCode.PASSED
    assert "sparse:column:cut=0.34:cached" in shown.out
    assert "round 1 of 1, full-ours" in shown.err
    written = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert [row["method"] for row in written["rows"]] == methods.split(",")
    assert all(row["error"] is None and row["step_seconds"] > 0 for row in written["rows"])
    assert written["rows"][0]["trainable_parameters"] > written["rows"][1]["trainable_parameters"] > 0
    assert written["environment"]["threads"] == 1
    assert {"torch", "transformers", "processor", "device", "date"} <= written["environment"].keys()
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--methods", "lroa"], "unknown method 'lroa'"),
        (["--methods", "sparse:column:selector=fischer"], "fisher"),
        (["--steps", "many"], "steps"),
        (["--batch", "3"], "--batch"),
        (["--model", "random:llama-9b"], "unknown random model 'llama-9b'"),
        (["--json", f"{__file__}/bench.json"], "can't be written"),
    ],
)
def test_wrong_options_end_with_a_usage_error_before_anything_runs(
    options: list[str], reason: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "run_job", _never)
    assert cli.main(["bench", "--methods", "full", *_TINY, *options]) == ExitCode.USAGE
    assert reason in capsys.readouterr().err


def _never(*_: object) -> None:
    raise AssertionError("a process was started")


def test_a_plot_without_matplotlib_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"pip install 'sparsegate\[bench\]'"):
        plot.check_plotting()


def test_methods_of_peft_without_peft_are_named_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "run_job", _never)
    monkeypatch.setitem(sys.modules, "peft", None)
    assert cli.main(["bench", "--methods", "full,lora,shira", *_TINY]) == ExitCode.USAGE
    assert "lora, shira: these need the package peft; run: pip install 'sparsegate[bench]'" in capsys.readouterr().err


# --- failures -----------------------------------------------------------------------------------


def _job_of(program: str) -> Measurement | str:
    return run_job({"threads": 1}, worker=(sys.executable, "-c", program))


def test_a_process_that_is_killed_becomes_an_error() -> None:
    assert _job_of("import os, signal; os.kill(os.getpid(), signal.SIGKILL)") == (
        "the process was killed, most likely for want of memory"
    )


def test_a_process_that_ends_without_figures_becomes_an_error_with_its_last_line() -> None:
    assert _job_of("raise SystemExit('no such thing')") == (
        "the process ended with code 1 and no figures: no such thing"
    )


def test_an_answer_that_lacks_figures_becomes_an_error() -> None:
    assert "ended with code 0 and no figures" in str(_job_of('print(\'{"measurement": {"step_seconds": 1}}\')'))


def test_a_worker_answers_an_error_on_one_line_whatever_libraries_print() -> None:
    job = {**asdict(BenchOptions()), "method": "shira", "model": "/nowhere"}
    del job["methods"], job["rounds"]
    outcome = run_job(job)
    assert isinstance(outcome, str)
    assert "\n" not in outcome
    assert "/nowhere" in outcome


def test_a_failed_method_is_a_row_with_its_error_and_the_command_ends_with_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def outcome(job: dict[str, object]) -> Measurement | str:
        return "out of memory: asked for 9 GB" if job["method"] == "full" else _figures()

    monkeypatch.setattr(run, "run_job", outcome)
    file = tmp_path / "bench.json"
    code = cli.main(["bench", *_TINY, "--methods", "full,full-ours", "--json", str(file)])
    assert code == ExitCode.ERROR
    assert "failed full: out of memory: asked for 9 GB" in capsys.readouterr().out
    rows = json.loads(file.read_text())["rows"]
    assert [(row["method"], row["error"], row["step_seconds"]) for row in rows] == [
        ("full", "out of memory: asked for 9 GB", None),
        ("full-ours", None, 2.0),
    ]


# --- rounds and ratios --------------------------------------------------------------------------


def test_methods_run_in_turn_and_the_median_over_rounds_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def outcome(job: dict[str, object]) -> Measurement:
        ran.append(str(job["method"]))
        return _figures(step_seconds=float(len(ran)))

    monkeypatch.setattr(run, "run_job", outcome)
    report = run_bench(BenchOptions(methods=("full", "full-ours"), model="random:llama-tiny", rounds=3))
    assert ran == ["full", "full-ours"] * 3
    assert [row.figures.step_seconds for row in report.rows if row.figures] == [3.0, 4.0]
    assert report.to_json()["rows"][0]["step_seconds_by_round"] == [1.0, 3.0, 5.0]


def test_a_method_that_fails_in_one_round_has_no_figures_and_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcomes = iter([_figures(), "out of memory"])
    monkeypatch.setattr(run, "run_job", lambda job: next(outcomes))
    report = run_bench(BenchOptions(methods=("full",), model="random:llama-tiny", rounds=3))
    assert report.rows == (Row("full", error="out of memory"),)


def test_a_benchmark_that_is_cut_short_has_kept_what_it_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def outcome(job: dict[str, object]) -> Measurement:
        if job["method"] == "full-ours":
            raise KeyboardInterrupt
        return _figures()

    monkeypatch.setattr(run, "run_job", outcome)
    file = tmp_path / "bench.json"
    assert cli.main(["bench", *_TINY, "--methods", "full,full-ours", "--json", str(file)]) == ExitCode.ERROR
    rows = json.loads(file.read_text())["rows"]
    assert [(row["step_seconds"], row["error"]) for row in rows] == [
        (2.0, None),
        (None, "not measured: the benchmark was cut short"),
    ]


def test_the_median_keeps_whole_numbers_whole() -> None:
    middle = median([_figures(peak=1000), _figures(peak=1001), replace(_figures(peak=4000), step_seconds=9.0)])
    assert middle.peak_memory_bytes == 1001
    assert isinstance(middle.peak_memory_bytes, int)
    assert middle.step_seconds == 2.0


def test_ratios_are_taken_to_lora_and_are_absent_where_it_was_not_measured() -> None:
    ours, lora = Row("sparse:column", (_figures(1.0, 500),)), Row("lora", (_figures(2.0, 1000),))
    ratios = _report(ours, lora).to_json()["rows"][0]["ratios"]
    assert ratios["lora"] == {"step_seconds": 0.5, "peak_memory_bytes": 0.5}
    assert ratios["lora-ours"] == {"step_seconds": None, "peak_memory_bytes": None}
    assert _report(ours, Row("lora", error="x")).ratio(ours, "lora", "step_seconds") is None


def test_the_table_fits_the_width_and_names_the_phase_of_the_peak() -> None:
    names = ("lora", "lora-ours", "sparse:column:density=0.05:cut=0.667:cached")
    text = render(_report(*(Row(name, (_figures(),)) for name in names), Row("full", error="out of memory")))
    assert max(len(line) for line in text.splitlines()) <= 120
    assert "…" not in text
    assert "\n  :cached" in text  # a long name goes on in the next line at a colon
    assert text.count("selection") >= 3
    assert "failed full: out of memory" in text


def test_a_plot_of_nothing_but_failures_is_still_a_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the optional package matplotlib is not installed")
    plot.write_plot(_report(Row("full", error="x")), tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 1000
