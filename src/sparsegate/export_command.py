"""The verb ``export`` and its options."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from sparsegate.config import RegistryConfig
from sparsegate.errors import ExitCode
from sparsegate.logs import quiet_logs
from sparsegate.options import PlainParser

_FORMATS = """formats:
  merged    a plain Hugging Face model with the changes in its weights
  lora      an adapter that PEFT and LoRA servers open; supports of columns or rows only
  shira     an adapter that PEFT opens; any support of linear maps
  delta     a delta file; TO is that file

Several sources become one: 'sparsegate export runs/A runs/B sum.safetensors --format delta --conflict sum'.
"""


def export(arguments: Sequence[str]) -> int:
    """Run ``sparsegate export``."""
    parser = PlainParser(
        prog="sparsegate export",
        description="Write a delta, or several of one base together, in a form that other programs open.",
        epilog=_FORMATS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    about = "a delta file, the folder of a run, models:/NAME/3 or models:/NAME@ALIAS"
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help=about)
    parser.add_argument("to", type=Path, metavar="TO", help="folder (or delta file) to write; never one that is in use")
    parser.add_argument(
        "--format", dest="to_format", required=True, choices=("merged", "lora", "shira", "delta"), help="see below"
    )
    parser.add_argument(
        "--conflict",
        default="error",
        choices=("error", "sum", "mean", "first"),
        help="what to do where two sources change the same entry (default: error, which refuses)",
    )
    parser.add_argument("--base", metavar="SOURCE", help="the base model, where the source does not say which it is")
    parser.add_argument("--public_key", type=Path, metavar="FILE", help="PEM file of the key that signed the versions")
    parser.add_argument("--tracking_uri", default=RegistryConfig.tracking_uri, help="MLflow tracking URI")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = vars(parser.parse_args(arguments))
    quiet_logs()
    from sparsegate.workflow.export import export as write

    as_json = options.pop("json")
    written = write(options.pop("sources"), options.pop("to"), **options)
    print(json.dumps(written.to_json(), ensure_ascii=False) if as_json else written.render())
    return ExitCode.PASSED
