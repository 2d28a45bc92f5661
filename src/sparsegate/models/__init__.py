"""Base models: where they come from, what pins them, how they are loaded."""

from sparsegate.models.cache import cache_folder
from sparsegate.models.digest import model_digest
from sparsegate.models.loading import load, load_tokenizer
from sparsegate.models.source import BaseModel, resolve

__all__ = ["BaseModel", "cache_folder", "load", "load_tokenizer", "model_digest", "resolve"]
