"""The configuration of a run: frozen dataclasses and their rules.

run.py       everything that decides a run: one section for each of what follows
inputs.py    base model, samples, prompt sets
training.py  what is trained, and how
release.py   predictions, the registry, who is told, drift
rules.py     the wording of rules, and what checks them all
"""

from sparsegate.config.inputs import EMBEDDED_MODEL, DataConfig, ModelConfig, SafetyConfig
from sparsegate.config.release import DriftConfig, EvaluationConfig, NotifyConfig, RegistryConfig
from sparsegate.config.rules import check_rules, notify_url_problem
from sparsegate.config.run import RunConfig
from sparsegate.config.training import DEFAULT_SELECTOR, PRESETS, Preset, RefreshConfig, TrainingConfig

__all__ = [
    "DEFAULT_SELECTOR",
    "EMBEDDED_MODEL",
    "PRESETS",
    "DataConfig",
    "DriftConfig",
    "EvaluationConfig",
    "ModelConfig",
    "NotifyConfig",
    "Preset",
    "RefreshConfig",
    "RegistryConfig",
    "RunConfig",
    "SafetyConfig",
    "TrainingConfig",
    "check_rules",
    "notify_url_problem",
]
