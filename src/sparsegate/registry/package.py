"""What a registered version holds: the delta, and what must be known to answer with it."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from sparsegate.contracts import Task
from sparsegate.errors import DataError, DeltaError
from sparsegate.files import atomic_path, read_json, sha256_file, write_json

SPEC_FILE = "spec.json"
DELTA_FILE = "delta.safetensors"
EVIDENCE_FILE = "evidence.dsse.json"
EVIDENCE_TYPE = "urn:sparsegate:evidence:v1"
CARD_FILE = "MODEL_CARD.md"
BOM_FILE = "bom.cdx.json"
_FORMAT = 1


@dataclass(frozen=True)
class ServingSpec:
    """Everything that decides an answer, apart from the delta's values.

    Args:
        task: What the model does.
        base_source: Source of the base model, pinned (a folder is given as absolute path).
        base_sha256: Expected sha256 of the base's package file, hex, or None.
        base_digest: Digest of the base model's folder; checked before the delta is applied.
        labels: Label words of a classification task, in scoring order.
        system_prompt: System message put before every prompt, or None.
        max_tokens: Longest prompt in tokens.
        max_new_tokens: Longest generated answer in tokens.
        trust_remote_code: Whether the base may run code of its own.
        delta_sha256: Digest of the delta file, hex.
        sparsegate_version: Version that made the package.
    """

    task: Task
    base_source: str
    base_sha256: str | None
    base_digest: str
    labels: tuple[str, ...]
    system_prompt: str | None
    max_tokens: int
    max_new_tokens: int
    trust_remote_code: bool
    delta_sha256: str
    sparsegate_version: str


def write_package(folder: Path, spec: ServingSpec, *, delta: Path) -> None:
    """Write the serving folder: ``delta.safetensors``, then ``spec.json``.

    Args:
        folder: Folder to write; made where it is missing.
        spec: What goes into ``spec.json``.
        delta: The delta file to copy.

    Raises:
        DeltaError: If the delta file is missing or is not the one that the spec names.
    """
    if not delta.is_file():
        raise DeltaError(f"{delta} does not exist")
    with atomic_path(folder / DELTA_FILE) as temporary:
        shutil.copyfile(delta, temporary)
        _check_delta(temporary, spec, named=delta)
    write_json(folder / SPEC_FILE, {"format": _FORMAT, **asdict(spec)})


def read_package(folder: Path) -> ServingSpec:
    """Read and verify a serving folder.

    Raises:
        DataError: If the folder is incomplete, holds anything else, or its spec is not one this version reads.
        DeltaError: If the delta's digest differs from the spec's.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist")
    found = {entry.name: entry for entry in folder.iterdir()}
    needed, allowed = {SPEC_FILE, DELTA_FILE}, {EVIDENCE_FILE, CARD_FILE, BOM_FILE}
    if not needed <= set(found) <= needed | allowed:
        raise DataError(
            f"{folder} must hold {SPEC_FILE} and {DELTA_FILE}, may hold {', '.join(sorted(allowed))},"
            f" holds {sorted(found)}"
        )
    if links := sorted(name for name, entry in found.items() if not entry.is_file() or entry.is_symlink()):
        raise DataError(f"{folder}: {', '.join(links)} must be a plain file")
    spec = _read_spec(folder / SPEC_FILE)
    _check_delta(folder / DELTA_FILE, spec, named=folder / DELTA_FILE)
    return spec


def _read_spec(path: Path) -> ServingSpec:
    values = read_json(path)
    expected = {"format", *(entry.name for entry in fields(ServingSpec))}
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        raise DataError(f"{path} is not a serving spec of format {_FORMAT}; update sparsegate to read newer ones")
    if set(values) != expected:
        raise DataError(f"{path} has missing or unknown fields: {sorted(set(values) ^ expected)}")
    kinds = {
        "a text": ("base_source", "base_digest", "delta_sha256", "sparsegate_version"),
        "a positive whole number": ("max_tokens", "max_new_tokens"),
        "a text or null": ("base_sha256", "system_prompt"),
    }
    rules = {
        "a text": lambda value: isinstance(value, str) and value != "",
        "a positive whole number": lambda value: type(value) is int and value > 0,
        "a text or null": lambda value: value is None or isinstance(value, str),
    }
    wrong = [
        f"{name} must be {kind}" for kind, names in kinds.items() for name in names if not rules[kind](values[name])
    ]
    labels = values["labels"]
    if values["task"] not in ("classification", "generation"):
        wrong.append("task must be classification or generation")
    if not isinstance(values["trust_remote_code"], bool):
        wrong.append("trust_remote_code must be true or false")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        wrong.append("labels must be a list of texts")
    if wrong:
        raise DataError(f"{path}: {'; '.join(wrong)}")
    return ServingSpec(**{**{name: values[name] for name in expected - {"format"}}, "labels": tuple(labels)})


def _check_delta(path: Path, spec: ServingSpec, *, named: Path) -> None:
    digest = sha256_file(path)
    if digest != spec.delta_sha256:
        raise DeltaError(f"{named} has sha256 {digest}, the spec names {spec.delta_sha256}; it was changed or mixed up")
