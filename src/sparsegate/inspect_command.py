"""The verb ``inspect`` and its options."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sparsegate.errors import ExitCode
from sparsegate.options import PlainParser


def inspect(arguments: Sequence[str]) -> int:
    """Run ``sparsegate inspect``."""
    parser = PlainParser(
        prog="sparsegate inspect",
        description="Show where the mask of a delta lies, how far its weights moved, and what it shares with another.",
        allow_abbrev=False,
    )
    parser.add_argument("delta", type=Path, metavar="DELTA|RUN", help="a delta file, or the folder of a run")
    parser.add_argument("--against", type=Path, metavar="DELTA|RUN", help="another delta of the same base")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw mask and changes, layer by module")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(arguments)
    from rich.console import Console

    from sparsegate.workflow.bench.plot import check_plotting
    from sparsegate.workflow.inputs import check_writable
    from sparsegate.workflow.inspection.plot import write_inspection_plot
    from sparsegate.workflow.inspection.result import inspect_delta
    from sparsegate.workflow.inspection.table import print_inspection

    if options.plot is not None:
        check_writable(options.plot.parent)
        check_plotting()
    found = inspect_delta(options.delta, against=options.against)
    if options.plot is not None:
        write_inspection_plot(found, options.plot)
    if options.json:
        print(json.dumps(found.to_json(), ensure_ascii=False))
    else:
        console = Console()
        print_inspection(found, console if console.is_terminal else Console(width=120))
    return ExitCode.PASSED
