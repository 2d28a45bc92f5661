"""The verb ``pilot`` and its options."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from sparsegate.logs import quiet_logs
from sparsegate.options import PlainParser


def pilot(arguments: Sequence[str]) -> int:
    """Run ``sparsegate pilot``."""
    parser = PlainParser(
        prog="sparsegate pilot",
        description="Measure on your own data what full fine-tuning, LoRA and sparse training keep, save and risk, and"
        " answer go or no-go against your targets. An interrupted pilot goes on where it was.",
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG.yaml", help="the pilot's file, or the name of a shipped one")
    parser.add_argument("--quick", action="store_true", help="look at less: minutes, and an answer with conditions")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(arguments)
    from sparsegate.config_file import load, shipped_config
    from sparsegate.workflow.pilot.config import PilotConfig

    config = load(shipped_config(options.config), PilotConfig)
    quiet_logs()
    from rich.console import Console

    from sparsegate.reports.pilot_terminal import print_pilot
    from sparsegate.workflow.pilot.run import run_pilot

    result = run_pilot(config, quick=options.quick)
    if options.json:
        sys.stdout.write(json.dumps(result.to_json(), ensure_ascii=False, allow_nan=False) + "\n")
    else:
        console = Console()
        print_pilot(result, console if console.is_terminal else Console(width=140))
    return result.verdict.exit_code
