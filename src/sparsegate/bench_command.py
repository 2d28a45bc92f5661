"""The verb ``bench`` and its options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sparsegate.logs import quiet_logs
from sparsegate.options import PlainParser, parse_options

if TYPE_CHECKING:
    from sparsegate.workflow.bench.options import BenchOptions
    from sparsegate.workflow.bench.result import BenchReport


def bench(arguments: Sequence[str]) -> int:
    """Run ``sparsegate bench``."""
    if any(argument.partition("=")[0] == "--quality" for argument in arguments):
        return _bench_quality(arguments)
    options, json_file, plot_file = _parse_bench(arguments)
    quiet_logs()
    from rich.console import Console

    from sparsegate.files import write_json
    from sparsegate.workflow.bench.plot import check_plotting, write_plot
    from sparsegate.workflow.bench.run import run_bench
    from sparsegate.workflow.bench.table import print_bench
    from sparsegate.workflow.inputs import check_writable

    for file in (json_file, plot_file):
        if file is not None:
            check_writable(file.parent)
    if plot_file is not None:
        check_plotting()

    def write_rows(report: BenchReport) -> None:
        if json_file is not None:
            write_json(json_file, report.to_json())

    report = run_bench(options, keep=write_rows)
    write_rows(report)
    if plot_file is not None:
        write_plot(report, plot_file)
    console = Console()
    print_bench(report, console if console.is_terminal else Console(width=120))
    return report.exit_code


def _bench_quality(arguments: Sequence[str]) -> int:
    """Run ``sparsegate bench --quality``."""
    from sparsegate.config_file import load, shipped_config
    from sparsegate.workflow.bench.quality.config import QualityConfig

    parser = PlainParser(prog="sparsegate bench", allow_abbrev=False)
    parser.add_argument("--quality", required=True, metavar="CONFIG.yaml")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    options = parser.parse_args(arguments)
    config = load(shipped_config(options.quality), QualityConfig)
    quiet_logs()
    from rich.console import Console

    from sparsegate.files import write_json
    from sparsegate.workflow.bench.plot import check_plotting
    from sparsegate.workflow.bench.quality.plot import write_quality_plot
    from sparsegate.workflow.bench.quality.run import run_quality
    from sparsegate.workflow.bench.quality.summary import summarise
    from sparsegate.workflow.bench.quality.table import print_quality
    from sparsegate.workflow.inputs import check_writable

    for file in filter(None, (options.json, options.plot)):
        check_writable(file.parent)
    if options.plot is not None:
        check_plotting()
    report = summarise(config, run_quality(config))
    if options.json is not None:
        write_json(options.json, report.to_json())
    if options.plot is not None:
        write_quality_plot(report, options.plot)
    console = Console()
    print_quality(report, console if console.is_terminal else Console(width=150))
    return report.exit_code


def _parse_bench(arguments: Sequence[str]) -> tuple[BenchOptions, Path | None, Path | None]:
    """Read the options of ``bench``, and the files for its JSON and its plot.

    Raises:
        UsageError: For options that can't be used.
    """
    from jsonargparse import ArgumentParser

    from sparsegate.workflow.bench.methods import METHODS
    from sparsegate.workflow.bench.options import DEFAULT_METHODS, BenchOptions

    about = "".join(f"\n  {name:<12}{method.about}" for name, method in METHODS.items())
    parser = ArgumentParser(
        prog="sparsegate bench",
        description=f"Measure training steps of several methods, each in a process of its own.\n\nmethods:{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--methods", default=",".join(DEFAULT_METHODS), help="methods, separated by commas")
    parser.add_class_arguments(BenchOptions, nested_key=None, skip={"methods"})
    about_quality = "measure accuracy and forgetting as the file says, instead; takes --json and --plot only"
    parser.add_argument("--quality", metavar="CONFIG.yaml", help=about_quality)
    parser.add_argument("--json", metavar="FILE", help="write rows and environment as JSON")
    parser.add_argument("--plot", metavar="FILE.png", help="draw step time against peak memory")
    parsed = parse_options(parser, arguments, config_type=BenchOptions, others={"quality", "json", "plot"}).as_dict()
    files = [None if parsed[name] is None else Path(parsed[name]) for name in ("json", "plot")]
    methods = tuple(name.strip() for name in parsed["methods"].split(",") if name.strip())
    values = {name: parsed[name] for name in BenchOptions.__dataclass_fields__ if name != "methods"}
    return BenchOptions(**values, methods=methods), files[0], files[1]
