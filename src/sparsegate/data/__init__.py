"""Samples: where they come from, how they are checked, split and turned into token ids."""

from sparsegate.data.attacks import attack_of, attack_prompts, source_of
from sparsegate.data.fingerprint import (
    Leak,
    Match,
    dataset_digest,
    find_duplicates,
    find_label_clashes,
    find_label_conflicts,
    find_leakage,
    normalise,
)
from sparsegate.data.overlap import find_near_duplicates, find_near_leaks, find_template_collisions
from sparsegate.data.personal_data import PERSONAL_KINDS, PersonalKind, personal_kinds
from sparsegate.data.samples import (
    PromptRow,
    check_labels,
    label_set,
    limit_by_hash,
    load_prompts,
    load_samples,
    split_by_hash,
)
from sparsegate.data.sources import local_path, read_rows
from sparsegate.data.template import ChatTemplate

__all__ = [
    "PERSONAL_KINDS",
    "ChatTemplate",
    "Leak",
    "Match",
    "PersonalKind",
    "PromptRow",
    "attack_of",
    "attack_prompts",
    "check_labels",
    "dataset_digest",
    "find_duplicates",
    "find_label_clashes",
    "find_label_conflicts",
    "find_leakage",
    "find_near_duplicates",
    "find_near_leaks",
    "find_template_collisions",
    "label_set",
    "limit_by_hash",
    "load_prompts",
    "load_samples",
    "local_path",
    "normalise",
    "personal_kinds",
    "read_rows",
    "source_of",
    "split_by_hash",
]
