"""What follows training: predictions, the registry, who is told, and when what users ask has drifted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sparsegate.config.rules import at_least, collect, in_range, notify_url_problem


@dataclass(frozen=True)
class EvaluationConfig:
    """How predictions are made.

    Args:
        device: Where models are evaluated, in fp32: ``cpu`` or ``cuda``.
        batch_size: Samples scored at once.
        max_new_tokens: Longest generated answer of a generation task, in tokens.
        general_text: General questions and texts (columns id, kind, prompt, response) by which the gates see what a
            model forgets; None measures nothing.
        stop_early: End a retrain as soon as the answers of candidate and base alone decide against a release; the
            verdict says so. ``sparsegate gate RUN`` asks the other gates.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    batch_size: int = 64
    max_new_tokens: int = 128
    general_text: str | None = "builtin:general/text.jsonl"
    stop_early: bool = True

    def problems(self) -> dict[str, str]:
        return collect(
            batch_size=at_least("batch_size", self.batch_size, 1),
            max_new_tokens=at_least("max_new_tokens", self.max_new_tokens, 1),
        )


@dataclass(frozen=True)
class RegistryConfig:
    """Where runs are tracked and models registered.

    Args:
        name: Registered model name.
        tracking_uri: Any MLflow tracking URI.
        experiment: MLflow experiment.
        alias: Alias of the live version.
        anchor: Number of a version that every candidate is held against besides the live one, so that many small losses
            don't add up; None for no such version.
        signing_key: PEM file with the Ed25519 key that signs evidence; None takes the PEM text in the environment
            variable SPARSEGATE_SIGNING_KEY, or leaves evidence unsigned.
        actor: Who acts, kept in evidence; None takes it from the environment (CI identity, else the user).
    """

    name: str = "support-routing"
    tracking_uri: str = "sqlite:///mlflow.db"
    experiment: str = "sparsegate"
    alias: str = "champion"
    anchor: int | None = None
    signing_key: str | None = None
    actor: str | None = None

    def problems(self) -> dict[str, str]:
        return collect(anchor=None if self.anchor is None else at_least("anchor", self.anchor, 1))


@dataclass(frozen=True)
class NotifyConfig:
    """Who hears how a run ended, or that none came. It decides nothing, and its failure never changes how a run ends.

    Args:
        url: Where to POST the result as JSON; ``env:NAME`` takes the URL from the environment, where one that is a
            secret belongs. None tells nobody.
        timeout_s: Longest wait for an answer, in seconds; there is one retry.
        expect_every_hours: Longest time between the starts of two runs, in hours, such as 26 for a nightly one;
            ``sparsegate status`` says when one is overdue. None leaves that to ``--max_age``.
    """

    url: str | None = None
    timeout_s: float = 10.0
    expect_every_hours: float | None = None

    def problems(self) -> dict[str, str]:
        hours = self.expect_every_hours
        return collect(
            url=None if self.url is None or self.url.startswith("env:") else notify_url_problem(self.url),
            timeout_s=in_range("timeout_s", self.timeout_s, 0, 300, open_low=True),
            expect_every_hours=None if hours is None else in_range("expect_every_hours", hours, 0, 8784, open_low=True),
        )


@dataclass(frozen=True)
class DriftConfig:
    """When what users ask has drifted from the training data: a classifier can tell the two apart.

    Args:
        log: What the live model was asked: a JSONL, CSV or Parquet file, the latest row last; needed by the trigger
            ``drift``.
        column: Column of the prompts; None takes ``data.prompt_column``.
        last: Only so many rows, from the end of the log.
        minimum_n: Distinct prompts needed on each side; with fewer there is no drift.
        minimum_auc: Drift is where the lower end of the AUC's interval is at least this, in (0.5, 1).
        confidence: Two-sided level of that interval.
    """

    log: str | None = None
    column: str | None = None
    last: int = 2000
    minimum_n: int = 100
    minimum_auc: float = 0.6
    confidence: float = 0.95

    def problems(self) -> dict[str, str]:
        return collect(
            last=at_least("last", self.last, 1),
            minimum_n=at_least("minimum_n", self.minimum_n, 20),
            minimum_auc=in_range("minimum_auc", self.minimum_auc, 0.5, 1, open_low=True, open_high=True),
            confidence=in_range("confidence", self.confidence, 0.5, 1, open_high=True),
        )
