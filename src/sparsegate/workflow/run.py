"""A run: its folder, and the names of the files that its stages hand over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sparsegate.config import RunConfig
from sparsegate.config_file import load as load_config
from sparsegate.contracts import RunManifest, canonical_json
from sparsegate.errors import DataError, UsageError
from sparsegate.files import read_json, sha256_bytes, write_json
from sparsegate.models import BaseModel, resolve
from sparsegate.workflow.candidate import Candidate
from sparsegate.workflow.identity import actor
from sparsegate.workflow.inputs import Inputs, load_inputs, make_manifest
from sparsegate.workflow.ledger import Ledger
from sparsegate_gates.policy import Policy, load_policy

_GIVEN_FILE = "candidate.json"


@dataclass(frozen=True)
class Run:
    """Everything a stage needs.

    Args:
        config: The configuration.
        policy: The policy.
        inputs: Samples and prompt sets.
        base: The base model.
        manifest: Digests of all of these, and the run key.
        folder: The run's folder.
        ledger: Which stages are done.
        given: A model trained elsewhere that is judged in place of what the run trains.
    """

    config: RunConfig
    policy: Policy
    inputs: Inputs
    base: BaseModel
    manifest: RunManifest
    folder: Path
    ledger: Ledger
    given: Candidate | None = None

    @property
    def gates_dir(self) -> Path:
        return self.folder / "gates" / self.policy.name

    @property
    def report_dir(self) -> Path:
        return self.folder / "report" / self.policy.name

    @property
    def delta(self) -> Path:
        return self.folder / "train" / "delta.safetensors"

    @property
    def cost(self) -> Path:
        return self.folder / "train" / "cost.json"

    def artifacts(self) -> dict[str, Path]:
        """Return the files that gates judge from and that exist, by the names in :class:`~.contracts.GateContext`."""
        named = {
            **{
                f"data.{part}": self.folder / "data" / f"{part}.jsonl" for part in ("train", "validation", "evaluation")
            },
            "prompts.canaries": self.folder / "data" / "canaries.jsonl",
            "delta": self.delta,
            "cost": self.cost,
            "size": self.folder / "evaluate" / "size.json",
            "cost.champion": self.folder / "evaluate" / "cost.champion.json",
            "reload": self.folder / "evaluate" / "reload.json",
            "loaded": self.folder / "evaluate" / "loaded.json",
            "base_model": self.base.folder,
        }
        if self.given is not None:
            named |= {self.given.artifact: self.given.place}
            if self.given.kind == "delta":
                named |= {"base_model": self.given.subject.base.folder}
        named |= {path.name.removesuffix(".jsonl"): path for path in (self.folder / "evaluate").glob("*.jsonl")}
        return {name: path for name, path in named.items() if path.exists()}


def open_run(
    config: RunConfig,
    policy: Policy,
    inputs: Inputs,
    base: BaseModel,
    *,
    triggers: Sequence[str] = (),
    given: Candidate | None = None,
) -> Run:
    """Make or find the folder of a run, named by its key; what it was started for first stays on record."""
    run = name_run(config, policy, inputs, base, given=given)
    run = replace(run, manifest=replace(run.manifest, triggers=run.manifest.triggers or triggers))
    write_json(run.folder / "manifest.json", asdict(run.manifest))
    write_json(run.folder / "config.json", asdict(config))
    if given is not None:
        write_json(run.folder / _GIVEN_FILE, given.to_json())
    return run


def name_run(
    config: RunConfig, policy: Policy, inputs: Inputs, base: BaseModel, *, given: Candidate | None = None
) -> Run:
    """Return the run of a configuration; nothing is written."""
    manifest = make_manifest(config, policy, inputs, base)
    if given is not None:
        key = [manifest.run_key, given.kind, given.subject.digest]
        manifest = replace(manifest, run_key=sha256_bytes(canonical_json(key).encode()))
    folder = Path(config.output_dir).absolute() / manifest.run_key[:16]
    # whoever goes on with a run does not become its author, and could then approve it
    known = read_json(folder / "manifest.json") if (folder / "manifest.json").exists() else {}
    author = known["author"] if "author" in known else actor(config.registry)
    manifest = replace(manifest, author=author, triggers=known.get("triggers", ()))
    return Run(config, policy, inputs, base, manifest, folder, Ledger(folder), given)


def reopen_run(folder: Path, *, policy: str | None = None) -> Run:
    """Open the folder of an earlier run again.

    Args:
        folder: The run's folder.
        policy: Policy to judge by; None takes the run's own.

    Raises:
        UsageError: If it is no run's folder.
        DataError: If the data or the base model are no longer those of the run.
    """
    if not (folder / "config.json").is_file() or not (folder / "manifest.json").is_file():
        raise UsageError(f"{folder} is not the folder of a run; it must hold config.json and manifest.json")
    if (folder / _GIVEN_FILE).exists():
        raise UsageError(
            f"{folder} is about a model that was trained elsewhere; 'sparsegate gate --config FILE --candidate WHERE'"
            " judges it again, and it can't be registered or waived"
        )
    config = load_config(folder / "config.json")
    manifest = RunManifest(**read_json(folder / "manifest.json"))
    inputs = load_inputs(config)
    base = resolve_base(config)
    own_policy = load_policy(config.policy)
    now = make_manifest(config, own_policy, inputs, base)
    changed = [
        name
        for name in ("config_sha256", "base_digest", "data_sha256")
        if getattr(now, name) != getattr(manifest, name)
    ]
    if changed:
        raise DataError(f"{folder}: {', '.join(changed)} differ from what the run was made with; start a new run")
    chosen = load_policy(policy) if policy else own_policy
    return Run(config, chosen, inputs, base, manifest, folder.absolute(), Ledger(folder.absolute()))


def resolve_base(config: RunConfig, *, local_only: bool = False) -> BaseModel:
    """Find the base model of a configuration, fetched first if needed.

    Raises:
        NotHereError: If it would have to be fetched, and ``local_only`` forbids it.
    """
    model = config.model
    return resolve(
        model.source,
        sha256=model.sha256,
        cache_dir=Path(model.cache_dir) if model.cache_dir else None,
        trust_remote_code=model.trust_remote_code,
        local_only=local_only,
    )


def flat_params(config: RunConfig) -> Mapping[str, str]:
    """Return the configuration as flat parameters, such as ``training.density``."""
    flat: dict[str, str] = {}

    def walk(part: Mapping[str, object], prefix: str) -> None:
        for name, value in part.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}.")
            else:
                flat[f"{prefix}{name}"] = str(value)

    walk(asdict(config), "")
    # a tracking URI may hold a password, and where things are kept is no parameter
    elsewhere = ("registry.tracking_uri", "registry.signing_key", "registry.actor", "model.cache_dir", "output_dir")
    started_by = ("trigger", *(name for name in flat if name.startswith(("notify.", "drift."))))
    for name in (*elsewhere, *started_by):
        del flat[name]
    return flat
