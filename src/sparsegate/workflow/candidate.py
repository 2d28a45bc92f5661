"""What is judged: a run's own delta, or a model that was trained elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from sparsegate import __version__
from sparsegate.config import RunConfig
from sparsegate.contracts import JSON
from sparsegate.errors import DataError, UsageError
from sparsegate.files import sha256_file
from sparsegate.models import BaseModel, cache_folder, resolve
from sparsegate.models.adapter import CONFIG_FILE, check_adapter_folder, merge_adapter
from sparsegate.models.artifact import digest_of, file_digests, refuse_pickles
from sparsegate.models.folder import check_model_folder
from sparsegate.registry.envelope import unseal
from sparsegate.registry.package import DELTA_FILE, EVIDENCE_FILE, EVIDENCE_TYPE, ServingSpec, read_package
from sparsegate.registry.stored import download_run_package, download_version
from sparsegate.sparse.delta import apply_delta, read_delta, revert_delta

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sparsegate.workflow.run import Run

_VERSION = re.compile(r"models:/([^/@]+)(?:@([^/@]+)|/([1-9][0-9]*))")
_RUN = re.compile(r"runs:/([^/@]+)/(.+)")


class Subject(NamedTuple):
    """One model to evaluate.

    Args:
        role: ``candidate``, ``champion``, ``anchor`` or ``base``.
        digest: Answers are kept by it.
        base: The model folder that is loaded.
        change: Delta file or adapter folder that is put on it, or None.
        spec: How it answers.
    """

    role: str
    digest: str
    base: BaseModel
    change: Path | None
    spec: ServingSpec


@dataclass(frozen=True)
class Candidate:
    """A model that was trained elsewhere.

    Args:
        kind: ``delta`` (a version or run of this project), ``merged`` (a whole model) or ``adapter``.
        source: What the user named.
        place: Its delta file or its folder, on this machine.
        files: The sha256 of each of its files.
        subject: How it is loaded and asked.
        cost: What the registry says that its training cost, if it does.
    """

    kind: Literal["delta", "merged", "adapter"]
    source: str
    place: Path
    files: Mapping[str, str]
    subject: Subject
    cost: JSON = None

    @property
    def artifact(self) -> str:
        """The name under which gates find it."""
        return "delta" if self.kind == "delta" else "candidate"

    def size(self, base: BaseModel) -> dict[str, JSON]:
        """Return the bytes of its weight files and of the base's."""
        own = [self.place] if self.kind == "delta" else self.place.glob("*.safetensors")
        return {
            "artifact_bytes": sum(path.stat().st_size for path in own),
            "base_bytes": sum(path.stat().st_size for path in base.folder.glob("*.safetensors")),
        }

    def check_unchanged(self) -> None:
        """Check, once it is loaded, that the files still are those whose digest its answers are kept by.

        Raises:
            DataError: If they are not.
        """
        if self.kind != "delta" and file_digests(self.place) != self.files:
            raise DataError(f"{self.place} changed while it was judged; give the same command again")

    def to_json(self) -> dict[str, JSON]:
        return {"kind": self.kind, "source": self.source, "files": dict(self.files)}


def find_candidate(where: str, config: RunConfig, labels: tuple[str, ...], base: BaseModel) -> Candidate:
    """Find a model that was trained elsewhere; nothing of it is loaded or run.

    Args:
        where: Folder of a whole model or an adapter, ``models:/NAME/3``, ``models:/NAME@ALIAS`` or ``runs:/ID/model``.
        config: The configuration by which it is judged.
        labels: Label words of a classification task.
        base: The base model of the configuration.

    Raises:
        UsageError: If there is no such model.
        ModelError: If a folder is no model's or holds pickled files.
        RegistryError: If MLflow fails, or holds other bytes than were registered.
    """
    if where.startswith(("models:/", "runs:/")):
        return _registered(where, config, base)
    folder = Path(where).expanduser().absolute()
    if not folder.is_dir():
        raise UsageError(
            f"--candidate {where} is no folder; give a model's or an adapter's, models:/NAME/3 or runs:/ID/model"
        )
    refuse_pickles(folder)
    files = file_digests(folder)
    digest = digest_of(files)
    # nobody vouches for code that came with it
    spec = replace(config_spec(config, labels, base), trust_remote_code=False)
    if (folder / CONFIG_FILE).exists():
        check_adapter_folder(folder)
        subject = Subject("candidate", f"{base.digest}+{digest}", base, folder, spec)
        return Candidate("adapter", where, folder, files, subject)
    check_model_folder(folder)
    return Candidate(
        "merged", where, folder, files, Subject("candidate", digest, BaseModel(folder, str(folder), digest), None, spec)
    )


def _registered(where: str, config: RunConfig, base: BaseModel) -> Candidate:
    """Download what this project registered or logged; it is asked as it says itself, as a champion is."""
    uri, to = config.registry.tracking_uri, cache_folder(_cache_dir(config)) / "candidates"
    version, run, cost = _VERSION.fullmatch(where), _RUN.fullmatch(where), None
    if version is not None:
        name, alias, number = version.groups()
        stored = download_version(uri, name, alias or int(number), download_to=to / name)
        if stored is None:
            raise UsageError(f"--candidate {where}: the registry has no such version")
        package, cost = stored.package, stored_cost(stored.package)
    elif run is not None:
        package = download_run_package(uri, *run.groups(), download_to=to)
    else:
        raise UsageError(f"--candidate {where} names no version or run; give models:/NAME/3 or runs:/ID/model")
    subject = package_subject("candidate", package, config, base)
    delta = package / DELTA_FILE
    return Candidate("delta", where, delta, {DELTA_FILE: subject.spec.delta_sha256}, subject, cost)


def stored_cost(package: Path) -> JSON | None:
    """Return what a version took, from the evidence in its package; None where it has none.

    Raises:
        EvidenceError: If the evidence can't be read.
    """
    evidence = package / EVIDENCE_FILE
    if not evidence.exists():
        return None
    return unseal(evidence.read_bytes(), predicate_type=EVIDENCE_TYPE).statement.predicate.get("cost")


def package_subject(role: str, package: Path, config: RunConfig, base: BaseModel) -> Subject:
    """Return the model in a serving folder, on the base that it names."""
    spec = read_package(package)
    if spec.base_digest != base.digest:
        base = resolve(
            spec.base_source,
            sha256=spec.base_sha256,
            cache_dir=_cache_dir(config),
            trust_remote_code=config.model.trust_remote_code,
        )
    return Subject(role, f"{spec.base_digest}+{spec.delta_sha256}", base, package / DELTA_FILE, spec)


def candidate_of(run: Run) -> Subject:
    """Return the model that a run judges."""
    if run.given is not None:
        return run.given.subject
    spec = serving_spec(run)
    return Subject("candidate", f"{run.base.digest}+{spec.delta_sha256}", run.base, run.delta, spec)


def serving_spec(run: Run) -> ServingSpec:
    """Return what must be known to serve what the run trained."""
    spec = config_spec(run.config, run.inputs.labels, run.base)
    return replace(spec, delta_sha256=sha256_file(run.delta), sparsegate_version=run.manifest.code_version)


def config_spec(config: RunConfig, labels: tuple[str, ...], base: BaseModel) -> ServingSpec:
    """Return how a model without a delta answers under a configuration."""
    return ServingSpec(
        task=config.data.task,
        base_source=base.source,
        base_sha256=config.model.sha256,
        base_digest=base.digest,
        labels=labels,
        system_prompt=config.data.system_prompt,
        max_tokens=config.data.max_tokens,
        max_new_tokens=config.evaluation.max_new_tokens,
        trust_remote_code=config.model.trust_remote_code,
        delta_sha256="",
        sparsegate_version=__version__,
    )


@contextmanager
def changed(model: PreTrainedModel, change: Path | None) -> Iterator[PreTrainedModel]:
    """Yield a base model with a delta or an adapter on it. A delta is taken back; an adapter uses the model up."""
    if change is None:
        yield model
    elif change.is_dir():
        yield merge_adapter(model, change)
    else:
        delta = read_delta(change)
        apply_delta(model, delta)
        yield model
        revert_delta(model, delta)


def is_adapter(subject: Subject) -> bool:
    """Say whether a subject uses up the model that it is put on."""
    return subject.change is not None and subject.change.is_dir()


def _cache_dir(config: RunConfig) -> Path | None:
    return Path(config.model.cache_dir) if config.model.cache_dir else None
