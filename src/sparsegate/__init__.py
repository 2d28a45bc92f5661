"""Retrain language models by updating only the weights that matter, behind gates, into MLflow."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# loaded when first used: importing torch takes seconds, and `sparsegate --help` needs none of it
_PUBLIC = {
    "ChatTemplate": "sparsegate.data",
    "Predictor": "sparsegate.evaluation.predictor",
    "RefreshCallback": "sparsegate.training.refresh",
    "RunConfig": "sparsegate.config",
    "SampleDataModule": "sparsegate.data.datamodule",
    "SparseFineTuner": "sparsegate.training.module",
    "apply_delta": "sparsegate.sparse.delta",
    "load": "sparsegate.models",
    "load_champion": "sparsegate.workflow.live",
    "load_samples": "sparsegate.data",
    "read_delta": "sparsegate.sparse.delta",
    "resolve": "sparsegate.models",
    "revert_delta": "sparsegate.sparse.delta",
    "write_delta": "sparsegate.sparse.delta",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sparsegate' has no attribute '{name}'")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
