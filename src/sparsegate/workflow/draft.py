"""Writes the suite of expectations that ``sparsegate validate --draft-suite`` drafts."""

from __future__ import annotations

import os
from pathlib import Path

from sparsegate.contracts import Task
from sparsegate.errors import UsageError
from sparsegate.files import write_json
from sparsegate.workflow.inputs import Inputs
from sparsegate_gates.draft_suite import draft_suite


def write_draft_suite(file: Path, inputs: Inputs, *, task: Task) -> None:
    """Draft a suite from what a run would train on and be judged by, and write it.

    Args:
        file: New JSON file.
        inputs: The run's samples.
        task: What the model is trained for.

    Raises:
        UsageError: If the file is there already, can't be written, or has another ending.
    """
    if file.suffix != ".json":
        raise UsageError(f"--draft-suite must name a .json file, got '{file}'")
    if file.exists():
        raise UsageError(f"--draft-suite: {file} is there already and may have been changed; give another name")
    folder = file.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"--draft-suite: {folder} is not a folder you may write to; choose another")
    tables = {"train": inputs.train, "evaluation": inputs.evaluation}
    write_json(file, draft_suite(tables, task=task, mixed=bool(inputs.mix_ids)))
