"""Runs: what went in, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CostReport:
    """What training cost, as measured.

    Args:
        method: Name of the training method.
        train_seconds: Wall-clock time of fitting, selection included.
        selection_seconds: Part of it spent on choosing the mask.
        tokens_per_second: Real (unpadded) training tokens per second of fitting.
        steps: Optimizer steps.
        peak_memory_bytes: Peak resident memory of the process (CPU) or peak allocated (CUDA).
        trainable_parameters: Entries that are updated.
        total_parameters: Entries in the model.
        trainable_state_bytes: Bytes of trained values, their gradients and optimizer moments.
        artifact_bytes: Size of the delta file.
        base_bytes: Size of the base model's weights.
        device: Where it ran, such as ``"cpu (2 threads)"``.
    """

    method: str
    train_seconds: float
    selection_seconds: float
    tokens_per_second: float
    steps: int
    peak_memory_bytes: int
    trainable_parameters: int
    total_parameters: int
    trainable_state_bytes: int
    artifact_bytes: int
    base_bytes: int
    device: str


NOT_INSTALLED = "not installed"


@dataclass(frozen=True)
class RunManifest:
    """What went into a run and came out: enough to repeat it and to know that it is the same.

    Args:
        run_key: Digest of everything that decides the outcome, hex.
        code_version: Version of sparsegate.
        config_sha256: Digest of the resolved configuration.
        policy_sha256: Digest of the resolved policy.
        base_digest: Digest of the base model folder.
        data_sha256: Name to digest of each input file.
        environment: Package name to version, or to ``NOT_INSTALLED``.
        author: Who made the run first; a waiver needs somebody else. It does not decide the outcome.
        triggers: Why it was started first, such as ``"schedule: slot 2026-11-25"``. They don't decide the outcome.
    """

    run_key: str
    code_version: str
    config_sha256: str
    policy_sha256: str
    base_digest: str
    data_sha256: Mapping[str, str]
    environment: Mapping[str, str]
    author: str = ""
    triggers: Sequence[str] = ()
