"""Options of the verbs that work on the folder of runs: status, prune."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from sparsegate.config import RegistryConfig, RunConfig
from sparsegate.errors import UsageError
from sparsegate.options import PlainParser

_ABOUT = {
    "status": "Say whether the runs of a registered model start and end as they should (exit 0), or one is missing or"
    " failed (exit 10), or none ever started (exit 11).",
    "prune": "Remove the folders of old runs of a registered model, and the evaluation results that only they used."
    " Runs behind a registered version stay, and so do versions.",
}
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def parse_runs_options(verb: str, arguments: Sequence[str]) -> Any:
    """Return the options of a verb.

    Raises:
        UsageError: For options that can't be used.
    """
    parser = PlainParser(prog=f"sparsegate {verb}", description=_ABOUT[verb], allow_abbrev=False)
    parser.add_argument("name", help="registered model")
    if verb == "status":
        about = "the last run must have started within this time, such as 26h, 90m or 7d (default: as configured)"
        parser.add_argument("--max_age", metavar="TIME", help=about)
        about = "MLflow tracking URI, to say also who holds the lock in its database (default: not asked)"
        parser.add_argument("--tracking_uri", help=about)
    else:
        parser.add_argument("--keep", type=int, default=10, metavar="K", help="newest runs that stay (default: 10)")
        parser.add_argument("--dry_run", action="store_true", help="say what would be removed, and remove nothing")
        parser.add_argument("--tracking_uri", default=RegistryConfig.tracking_uri, help="MLflow tracking URI")
        parser.add_argument(
            "--cache_dir", type=Path, metavar="FOLDER", help="the runs' model.cache_dir, if they have one"
        )
    parser.add_argument("--output_dir", type=Path, default=Path(RunConfig.output_dir), help="folder of the runs")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(arguments)
    if verb == "status":
        options.max_age = None if options.max_age is None else _duration(options.max_age)
    elif options.keep < 1:
        raise UsageError(f"--keep must be at least 1, got {options.keep}")
    return options


def _duration(text: str) -> timedelta:
    found = re.fullmatch(r"(\d{1,5}(?:\.\d+)?)([mhd])", text)
    if found is None or float(found[1]) == 0:
        raise UsageError(f"--max_age must be a number above 0 with m, h or d, such as 26h; got '{text}'")
    return timedelta(**{_UNITS[found[2]]: float(found[1])})
