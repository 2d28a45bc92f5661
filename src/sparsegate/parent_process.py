"""A process that works for another must not outlive it: one that was killed can't stop what it had started."""

from __future__ import annotations

import os
import threading
import time

_EVERY_SECONDS = 1.0


def end_with_parent() -> None:
    """End this process, at once and without cleaning up, soon after the one that started it has ended.

    Where the parent is gone already, whoever took its place counts as the parent.
    """
    threading.Thread(target=_watch, args=(os.getppid(),), name="end_with_parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_EVERY_SECONDS)
    os._exit(1)
