"""Samples: where they come from, how they are checked, split and turned into token ids."""

from sparsegate.data.attacks import attack_of, attack_prompts, source_of
from sparsegate.data.fingerprint import (
    Leak,
    dataset_digest,
    find_duplicates,
    find_label_conflicts,
    find_leakage,
    normalise,
)
from sparsegate.data.samples import PromptRow, check_labels, label_set, load_prompts, load_samples, split_by_hash
from sparsegate.data.sources import local_path, read_rows
from sparsegate.data.template import ChatTemplate

__all__ = [
    "ChatTemplate",
    "Leak",
    "PromptRow",
    "attack_of",
    "attack_prompts",
    "check_labels",
    "dataset_digest",
    "find_duplicates",
    "find_label_conflicts",
    "find_leakage",
    "label_set",
    "load_prompts",
    "load_samples",
    "local_path",
    "normalise",
    "read_rows",
    "source_of",
    "split_by_hash",
]
