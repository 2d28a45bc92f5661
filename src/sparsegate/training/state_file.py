"""Hidden states on disk: what the prefix cache keeps beyond its share of memory."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor

_LOG = logging.getLogger(__name__)
_CHUNK_BYTES = 1 << 28
_ALIGNMENT = 64
_CAN_RESERVE = hasattr(os, "posix_fallocate")  # else a full disk would end the process, at a write to mapped memory


class StateFile:
    """Tensors in memory-mapped files without a name, which are gone when the process is, killed or not.

    They take their space before it is written to, so that a full disk is noticed in time.

    Args:
        folder: Whose disk to use; None is the system's folder for temporary files. Not touched before :meth:`put`.
        limit_bytes: Largest size; 0 where the platform can't reserve space. Lowered to the size reached when the disk
            gives no more, or half of what was free is taken.
    """

    def __init__(self, folder: Path | None, *, limit_bytes: int) -> None:
        self._folder = folder or Path(tempfile.gettempdir())
        self.limit_bytes = limit_bytes if _CAN_RESERVE else 0
        self.size_bytes = 0
        self._chunks: list[mmap.mmap] = []
        self._next = 0  # place in the last chunk

    def put(self, state: Tensor) -> Tensor | None:
        """Return a copy on the CPU that lies on disk, or None where there is no room for it."""
        size, room = state.numel() * state.element_size(), self.limit_bytes - self.size_bytes
        if not self._chunks or self._next + size > len(self._chunks[-1]):
            if size > room or not self._grow(min(room, max(size, _CHUNK_BYTES))):
                return None
            self._next = 0
        kept = torch.frombuffer(self._chunks[-1], dtype=state.dtype, count=state.numel(), offset=self._next)
        self._next += -(-size // _ALIGNMENT) * _ALIGNMENT
        return kept.view(state.shape).copy_(state)

    def release(self) -> None:
        """Take what was used out of this process's memory; the system keeps as much of it as it has room for."""
        for chunk in self._chunks:
            chunk.madvise(mmap.MADV_DONTNEED)

    def _grow(self, size: int) -> bool:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self._folder).free < self.size_bytes + 2 * size:
                raise OSError(errno.ENOSPC, "half of the free space is taken")
            with tempfile.TemporaryFile(dir=self._folder) as file:
                os.posix_fallocate(file.fileno(), 0, size)
                self._chunks.append(mmap.mmap(file.fileno(), size))
        except OSError as error:
            _LOG.warning(
                "outputs of frozen layers beyond %.1f GB are not kept in %s, and computed in each epoch: %s",
                self.size_bytes / 1e9,
                self._folder,
                error.strerror,
            )
            self.limit_bytes = self.size_bytes
            return False
        self.size_bytes += size
        return True
