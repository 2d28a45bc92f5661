"""Options of the verbs that work on registered versions: verify, promote, rollback, history."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsegate.config import RegistryConfig, RunConfig
from sparsegate.errors import UsageError
from sparsegate.options import PlainParser

_ABOUT = {
    "verify": "Check a version from the registry's bytes: who signed it, what was judged, and that every gate passed.",
    "promote": "Make a registered version the champion, if it verifies and was judged against the present champion.",
    "rollback": "Make an earlier version the champion again, if it verifies.",
    "history": "List the versions of a registered model.",
}


def parse_version_options(verb: str, arguments: Sequence[str]) -> Any:
    """Return the options of a verb.

    Raises:
        UsageError: For options that can't be used.
    """
    parser = PlainParser(prog=f"sparsegate {verb}", description=_ABOUT[verb], allow_abbrev=False)
    if verb == "verify":
        parser.add_argument("target", help="models:/NAME@ALIAS or models:/NAME/VERSION")
        parser.add_argument("--public_key", type=Path, metavar="FILE", help="PEM file of the key that must have signed")
    else:
        parser.add_argument("name", help="registered model")
    if verb in ("promote", "rollback"):
        flag, about = (
            ("--version", "version to promote") if verb == "promote" else ("--to", "version (default: previous)")
        )
        parser.add_argument(flag, dest="number", type=int, metavar="N", required=verb == "promote", help=about)
        parser.add_argument("--reason", required=True, help="why; kept with the version")
        parser.add_argument("--actor", help="who (default: SPARSEGATE_ACTOR, the CI's user, or you)")
        parser.add_argument("--alias", default=RegistryConfig.alias, help="alias of the live version")
        parser.add_argument("--signing_key", metavar="FILE", help="PEM file (default: SPARSEGATE_SIGNING_KEY)")
        parser.add_argument(
            "--output_dir", type=Path, default=Path(RunConfig.output_dir), help="folder of the runs, where the lock is"
        )
    if verb == "rollback":
        parser.add_argument("--quarantine", action="store_true", help="forbid the version that is left for good")
    parser.add_argument("--tracking_uri", default=RegistryConfig.tracking_uri, help="MLflow tracking URI")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(arguments)
    if verb in ("promote", "rollback") and not options.reason.strip():
        raise UsageError("--reason must say why; it is kept with the version")
    return options


def registry_of(options: Any) -> RegistryConfig:
    """Return the registry that the options of ``promote`` or ``rollback`` name."""
    return RegistryConfig(
        name=options.name,
        tracking_uri=options.tracking_uri,
        alias=options.alias,
        signing_key=options.signing_key,
        actor=options.actor,
    )
