"""Is the delta file whole, safe to read, and made for this base model?

Everything is read from safetensors headers and tensors, one parameter at a time; no model is built and no code from
the file can run. Of a model that was trained elsewhere the whole folder is judged in the same way: plain safetensors
and tokenizer files and nothing else, finite, and the very files that were loaded and evaluated. What it was trained
from can't be known, so nothing is said about what it changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sparsegate.contracts import Check, GateContext, GateResult, Verdict
from sparsegate.errors import DataError
from sparsegate.files import read_json, sha256_file
from sparsegate.models.artifact import digest_of, file_digests
from sparsegate.models.digest import model_digest
from sparsegate_gates.delta_reader import BaseWeights, DeltaReader, ParameterFindings
from sparsegate_gates.model_files import examine_folder, folder_checks, loaded_check
from sparsegate_gates.rules import at_least, collect, given

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class IntegritySettings:
    """Thresholds of the integrity gate; what must hold for every delta is not a setting.

    Args:
        reason: Why these thresholds, and when they were chosen.
        minimum_changed: Entries that training must have changed: a delta that changes nothing is no candidate.
    """

    reason: str
    minimum_changed: int = 1

    def problems(self) -> dict[str, str]:
        return collect(
            reason=given("reason", self.reason),
            minimum_changed=at_least("minimum_changed", self.minimum_changed, 1),
        )


class Integrity:
    """Judges the delta file against the base model's files."""

    name = "integrity"
    settings: type = IntegritySettings
    stage: Literal["data", "model"] = "model"

    def run(self, context: GateContext) -> GateResult:
        settings: IntegritySettings = context.settings
        if context.has("candidate"):
            return self._judge_folder(context)
        place, base = context.path("delta"), context.path("base_model")
        try:
            file = the_only_file(place)
            with ExitStack() as stack:
                delta = stack.enter_context(DeltaReader(file))
                findings = delta.examine(stack.enter_context(BaseWeights(base)))
        except DataError as error:
            return GateResult.single(self.name, Verdict.FAIL, str(error))
        checks = [
            *_finding_checks(findings, settings.minimum_changed),
            _digest_check(delta.base_digest, model_digest(base)),
            # no training left a probe of a delta that came from elsewhere
            loaded_check(context, file) if "candidate" in context.facts else _reload_check(context),
        ]
        return GateResult(
            gate=self.name,
            checks=tuple(checks),
            method="safetensors read tensor by tensor; old values compared with the base's, bit for bit",
            items_sha256=sha256_file(file),
            details={"parameters": len(findings), "entries": sum(found.entries for found in findings)},
        )

    def _judge_folder(self, context: GateContext) -> GateResult:
        folder = context.path("candidate")
        try:
            findings = examine_folder(folder)
        except DataError as error:
            return GateResult.single(self.name, Verdict.FAIL, str(error))
        files = file_digests(folder)
        return GateResult(
            gate=self.name,
            checks=(*folder_checks(findings), loaded_check(context, folder)),
            method="every file of the folder; safetensors read tensor by tensor",
            items_sha256=digest_of(files),
            details={"parameters": findings.tensors, "files": [f"{name} {sha256}" for name, sha256 in files.items()]},
        )


def the_only_file(place: Path) -> Path:
    """Return the delta file: a regular safetensors file, or the single one in a folder without anything else.

    Raises:
        DataError: If it is a link, has another ending, or lies beside other files.
    """
    found = sorted(place.iterdir()) if place.is_dir() and not place.is_symlink() else [place]
    if len(found) != 1:
        raise DataError(
            f"the delta folder must hold one safetensors file and nothing else, holds {[f.name for f in found]}"
        )
    file = found[0]
    if file.is_symlink() or not file.is_file():
        raise DataError(f"{file.name} must be a regular file, not a link or folder")
    if file.suffix != ".safetensors":
        raise DataError(f"{file.name} must be a .safetensors file; other weight files can run code when read")
    return file


def _finding_checks(findings: list[ParameterFindings], minimum_changed: int) -> list[Check]:
    """Turn what was found in each parameter into one check for each question."""
    entries = sum(found.entries for found in findings)
    changed = sum(found.changed for found in findings)
    checks = [Check.at_least("entries changed", changed, minimum_changed, n=entries)]
    for question in ("ids sorted, unique and in range", "values finite", "old values equal the base's"):
        wrong = [found for found in findings if question in found.problems]
        checks.append(
            Check.at_most(
                f"parameters without: {question}",
                len(wrong),
                0,
                n=len(findings),
                reason="; ".join(f"{found.name}: {found.problems[question]}" for found in wrong[:3]),
                items=tuple(found.name for found in wrong),
            )
        )
    return checks


def _digest_check(claimed: str, actual: str) -> Check:
    reason = "" if claimed == actual else f"made for base {claimed[:12] or '(none)'}, this base is {actual[:12]}"
    return Check.at_most("base digest differs", float(claimed != actual), 0, n=1, reason=reason)


def _reload_check(context: GateContext) -> Check:
    """Judge whether the reloaded model answered the probe exactly as the one in memory did."""
    name = "answers differ after reload"
    if not context.has("reload") or not context.path("reload").is_file():
        return Check(
            name, Verdict.INSUFFICIENT, reason="no 'reload' file: the saved delta was not tried on a fresh model"
        )
    data: Any = read_json(context.path("reload"))
    digests = [
        data.get(f"probe_sha256_{place}") if isinstance(data, Mapping) else None for place in ("in_memory", "reloaded")
    ]
    if not all(isinstance(digest, str) and _SHA256.fullmatch(digest) for digest in digests):
        return Check(
            name, Verdict.ERROR, reason="the 'reload' file must hold probe_sha256_in_memory and probe_sha256_reloaded"
        )
    differ = digests[0] != digests[1]
    reason = "the model loaded from the delta answers otherwise than the trained one" if differ else ""
    return Check.at_most(name, float(differ), 0, n=1, reason=reason)
