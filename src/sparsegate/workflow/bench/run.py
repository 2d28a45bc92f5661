"""Runs a benchmark: every method in a fresh process, in turn, round after round."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from sparsegate import __version__
from sparsegate.contracts import JSON
from sparsegate.errors import UsageError
from sparsegate.workflow.bench.base import find_base
from sparsegate.workflow.bench.methods import METHODS
from sparsegate.workflow.bench.options import BenchOptions, check_options, parse_sparse
from sparsegate.workflow.bench.process import ask, worker_command
from sparsegate.workflow.bench.result import BenchReport, Measurement, Row
from sparsegate.workflow.devices import check_device

_LOG = logging.getLogger(__name__)
_PACKAGES = ("torch", "transformers", "peft", "safetensors", "numpy")
_WORKER = worker_command("sparsegate.workflow.bench.worker")


def run_bench(options: BenchOptions, *, keep: Callable[[BenchReport], object] | None = None) -> BenchReport:
    """Measure every method.

    Methods run in turn within a round, so that a drift of the machine is shared by all of them.

    Args:
        options: The work.
        keep: Given what is known after each measurement, so that a benchmark that is cut short leaves its figures.

    Raises:
        UsageError: If the options can't be used; nothing has run.
    """
    check_options(options, list(METHODS))
    check_choices(options.methods, options.device)
    found, about_model = find_base(options.model)
    work = asdict(options)
    job = {name: value for name, value in work.items() if name not in {"methods", "rounds"}} | {"model": found}
    outcomes: dict[str, list[Measurement | str]] = {method: [] for method in options.methods}
    environment = describe_environment(options.device, options.threads, about_model)
    report = _report(work, environment, outcomes)
    for number in range(1, options.rounds + 1):
        for method, so_far in outcomes.items():
            if any(isinstance(outcome, str) for outcome in so_far):
                continue
            so_far.append(run_job({**job, "method": method}))
            _LOG.info("round %d of %d, %s: %s", number, options.rounds, method, _in_words(so_far[-1]))
            report = _report(work, environment, outcomes)
            if keep is not None:
                keep(report)
    return replace(report, environment={**environment, "device": _device_name(options.device)})


def _report(
    work: Mapping[str, JSON], environment: Mapping[str, JSON], outcomes: Mapping[str, list[Measurement | str]]
) -> BenchReport:
    rows: list[Row] = []
    for method, so_far in outcomes.items():
        errors = [outcome for outcome in so_far if isinstance(outcome, str)]
        figures = tuple(outcome for outcome in so_far if not isinstance(outcome, str))
        if figures and not errors:
            rows.append(Row(method, figures))
        else:
            rows.append(Row(method, error=errors[0] if errors else "not measured: the benchmark was cut short"))
    return BenchReport(work, environment, tuple(rows))


def _in_words(outcome: Measurement | str) -> str:
    if isinstance(outcome, str):
        return f"failed: {outcome}"
    return f"{outcome.step_seconds:.3f} s a step, {outcome.peak_memory_bytes / 1e6:,.0f} MB"


def run_job(job: Mapping[str, JSON], *, worker: Sequence[str] = _WORKER) -> Measurement | str:
    """Measure one method in a process of its own.

    Args:
        job: Fields of :class:`~sparsegate.workflow.bench.measure.Job`.
        worker: Command that reads the job and writes the answer.

    Returns:
        Its figures, or why there are none, on one line.
    """
    return ask(job, worker=worker, read=lambda figures: Measurement(**figures))


def check_choices(methods: Sequence[str], device: str) -> None:
    """Check what needs torch or PEFT to be known.

    Raises:
        UsageError: For an unknown selector, a device that is not here, or methods of PEFT where it is not installed.
    """
    from sparsegate.sparse.selectors import make_selector

    for method in methods:
        name, _, setting = method.partition(":")
        if name == "sparse":
            make_selector(parse_sparse(setting).selector)
    from_peft = [method for method in methods if METHODS[method.partition(":")[0]].needs_peft]
    if from_peft and find_spec("peft") is None:
        raise UsageError(
            f"{', '.join(from_peft)}: these need the package peft; run: pip install 'sparsegate[bench]', "
            "or leave them out"
        )
    check_device(device, field="device")


def describe_environment(device: str, threads: int, about_model: Mapping[str, str]) -> dict[str, JSON]:
    """Return versions, processor, device, threads, date and what is known about the model."""
    import psutil

    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "sparsegate": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "system": platform.platform(),
        "processor": _processor(),
        "processors": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": psutil.getloadavg()[0],
        "device": device,
        "threads": threads,
        **about_model,
    }


def _device_name(device: str) -> str:
    """Name the device; asked for last, since it opens the device in this process too."""
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or a processor without a name
        return platform.processor() or platform.machine()
