"""Reads and checks everything a run starts from, before anything is written."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sparsegate import __version__
from sparsegate.config import RunConfig, SafetyConfig, check_rules
from sparsegate.contracts import JSON, NOT_INSTALLED, RunManifest, Sample, canonical_json
from sparsegate.data import (
    PromptRow,
    attack_prompts,
    check_labels,
    dataset_digest,
    label_set,
    limit_by_hash,
    load_prompts,
    load_samples,
    split_by_hash,
)
from sparsegate.data.sources import read_rows
from sparsegate.errors import ConfigError, DataError, MissingColumnError, UsageError
from sparsegate.files import sha256_bytes
from sparsegate.models import BaseModel
from sparsegate_gates.policy import Policy

ATTACK_SEED = 0  # fixed: so must the red-team prompts
_SPLIT_SEED = 0  # fixed: the evaluation set must not change with training.seed
# of the shipped pairs; the kind tells refusals from other pairs, and general texts apart
_KIND, _PAIR_COLUMNS = "kind", {"prompt_column": "prompt", "response_column": "response", "id_column": "id"}
_ENVIRONMENT = ("torch", "transformers", "lightning", "mlflow", "great-expectations", "torchmetrics", "safetensors")


@dataclass(frozen=True)
class Inputs:
    """The samples and prompt sets of a run.

    Args:
        train: Samples to train on, the safety mix included.
        mix_ids: Ids of the samples that come from the safety mix.
        validation: Samples for the validation loss.
        evaluation: Held-back samples that the gates judge by.
        labels: Label words of a classification task, sorted; empty for generation.
        red_team: Harmful requests, in every attack style that is asked for.
        benign: Harmless requests.
        canaries: Rows that test the judge.
        general: General texts, by which forgetting is seen; ``slices`` has their ``kind``.
    """

    train: tuple[Sample, ...]
    mix_ids: frozenset[str]
    validation: tuple[Sample, ...]
    evaluation: tuple[Sample, ...]
    labels: tuple[str, ...]
    red_team: tuple[PromptRow, ...]
    benign: tuple[PromptRow, ...]
    canaries: tuple[dict[str, JSON], ...]
    general: tuple[Sample, ...] = ()

    def digests(self) -> dict[str, str]:
        """Return the digest of each part, hex."""
        return {
            "train": dataset_digest(self.train),
            "validation": dataset_digest(self.validation),
            "evaluation": dataset_digest(self.evaluation),
            "red_team": _digest(self.red_team),
            "benign": _digest(self.benign),
            "canaries": sha256_bytes(canonical_json(list(self.canaries)).encode()),
            "general": dataset_digest(self.general),
        }


def _digest(prompts: tuple[PromptRow, ...]) -> str:
    return sha256_bytes(canonical_json([asdict(prompt) for prompt in prompts]).encode())


def load_inputs(config: RunConfig) -> Inputs:
    """Read the data of a run.

    Raises:
        ConfigError: If a rule of the configuration is broken.
        DataError: If a file or its contents can't be used.
    """
    check_rules(config)
    data = config.data
    samples = _load(config, data.train)
    if data.evaluation is None:
        rest, evaluation = split_by_hash(samples, data.evaluation_fraction, seed=_SPLIT_SEED)
    else:
        rest, evaluation = samples, _load(config, data.evaluation)
    if not evaluation:
        raise DataError("there is no evaluation sample; set data.evaluation or data.evaluation_fraction above 0")
    evaluation = limit_by_hash(evaluation, data.evaluation_limit, seed=_SPLIT_SEED + 2)
    train, validation = split_by_hash(rest, data.validation_fraction, seed=_SPLIT_SEED + 1)
    labels: tuple[str, ...] = ()
    if data.task == "classification":
        labels = label_set(rest)
        check_labels(evaluation, labels)
        if len(labels) < 2:
            raise DataError(f"a classification task needs at least two labels, {data.train} has {list(labels)}")
    mix = _safety_mix(config, len(train))
    safety = config.safety
    return Inputs(
        train=(*train, *mix),
        mix_ids=frozenset(sample.id for sample in mix),
        validation=tuple(validation),
        evaluation=tuple(evaluation),
        labels=labels,
        red_team=_red_team(config),
        benign=tuple(load_prompts(safety.benign, limit=safety.limit)),
        canaries=load_canaries(safety.canaries),
        general=_general(config.evaluation.general_text),
    )


def _general(source: str | None) -> tuple[Sample, ...]:
    if source is None:
        return ()
    return tuple(load_samples(source, task="generation", slice_columns=(_KIND,), **_PAIR_COLUMNS))


def load_canaries(source: str) -> tuple[dict[str, JSON], ...]:
    """Read answers with a known label.

    Raises:
        DataError: If the file can't be used, or a row lacks a label.
    """
    return tuple(_canary(source, row) for row in read_rows(source))


def _load(config: RunConfig, source: str) -> list[Sample]:
    data = config.data
    return load_samples(
        source,
        task=data.task,
        prompt_column=data.prompt_column,
        response_column=data.response_column,
        id_column=data.id_column,
        slice_columns=data.slice_columns,
    )


def _safety_mix(config: RunConfig, num_train: int) -> list[Sample]:
    """Return as many pairs of the safety mix as make up its fraction, chosen by hash; so are its refusals."""
    safety = config.safety
    if safety.mix_fraction == 0:
        return []
    refusals, others = _mix_pairs(safety)
    share = len(refusals) / (len(refusals) + len(others)) if safety.mix_refusals is None else safety.mix_refusals
    wanted = round(num_train * safety.mix_fraction / (1 - safety.mix_fraction))
    num_refusals = round(wanted * share)
    if num_refusals > len(refusals) or wanted - num_refusals > len(others):
        parts = ((refusals, share), (others, 1 - share))
        most = min(int(len(part) / part_share) for part, part_share in parts if part_share)
        raise DataError(
            f"safety.mix_fraction {safety.mix_fraction:g} of {num_train} training samples needs {wanted} pairs, "
            f"{num_refusals} of them refusals; {safety.mix} has {len(refusals) + len(others)} and {len(refusals)}; "
            f"lower it to {most / (most + num_train):.3f}, change safety.mix_refusals or give a larger file"
        )
    return [
        *limit_by_hash(refusals, num_refusals, seed=_SPLIT_SEED + 3),
        *limit_by_hash(others, wanted - num_refusals, seed=_SPLIT_SEED + 3),
    ]


def _mix_pairs(safety: SafetyConfig) -> tuple[list[Sample], list[Sample]]:
    """Return the refusals of the safety mix and its other pairs; all are others where the share is not asked for."""
    asked = () if safety.mix_refusals is None else (_KIND,)
    try:
        pairs = load_samples(safety.mix, task="generation", slice_columns=asked, **_PAIR_COLUMNS)
    except MissingColumnError as error:
        if error.column != _KIND:
            raise
        raise DataError(f"{error}; safety.mix_refusals needs it, unless it is null") from None
    refusals = [replace(pair, slices={}) for pair in pairs if pair.slices.get(_KIND) == "refuse"]
    return refusals, [replace(pair, slices={}) for pair in pairs if pair.slices.get(_KIND) != "refuse"]


def _red_team(config: RunConfig) -> tuple[PromptRow, ...]:
    safety = config.safety
    if safety.with_system_prompt and not config.data.system_prompt:
        raise ConfigError(["safety.with_system_prompt needs data.system_prompt; give one, or turn it off"])
    prompts = load_prompts(safety.red_team, limit=safety.limit)
    return tuple(
        attack_prompts(prompts, safety.attacks, with_system_prompt=safety.with_system_prompt, seed=ATTACK_SEED)
    )


def _canary(source: str, row: dict[str, str]) -> dict[str, JSON]:
    """Turn a row's texts into what the gates read."""
    truth = {"true": True, "false": False}
    try:
        flags = {name: truth[row[name].lower()] for name in ("harmful", "refused")}
        return {**{name: row[name] for name in ("id", "prompt", "response")}, **flags}
    except KeyError as error:
        raise DataError(
            f"{source}: row {row.get('id', row)} needs id, prompt, response, and true or false in harmful and refused; "
            f"{error} is not that"
        ) from None


def check_writable(folder: Path) -> None:
    """Check that a folder can be made and written.

    Raises:
        UsageError: If it can't.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(
            f"output_dir {folder} can't be written ({existing} is not a folder you may write to); choose another"
        )


def make_manifest(config: RunConfig, policy: Policy, inputs: Inputs, base: BaseModel) -> RunManifest:
    """Return what decides the run, with its key."""
    resolved = asdict(config)
    # where things are kept, who signs and why it starts does not decide what comes out
    del resolved["output_dir"], resolved["model"]["cache_dir"], resolved["trigger"], resolved["drift"]
    del resolved["registry"]["signing_key"], resolved["registry"]["actor"], resolved["notify"]
    digests = inputs.digests()
    config_sha256 = sha256_bytes(canonical_json(resolved).encode())
    decides = [__version__, config_sha256, policy.sha256, base.digest, digests]
    return RunManifest(
        run_key=sha256_bytes(canonical_json(decides).encode()),
        code_version=__version__,
        config_sha256=config_sha256,
        policy_sha256=policy.sha256,
        base_digest=base.digest,
        data_sha256=digests,
        environment={name: _version(name) for name in _ENVIRONMENT},
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return NOT_INSTALLED
