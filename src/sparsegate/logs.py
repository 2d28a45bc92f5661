"""Logs on stderr: our own progress, and warnings of the libraries."""

from __future__ import annotations

import logging
import os
import sys


def quiet_logs() -> None:
    """Our own progress lines on stderr; libraries speak up for warnings only."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for name in ("sparsegate", "sparsegate_gates"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.handlers = [handler]
        logger.propagate = False
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
