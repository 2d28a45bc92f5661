import errno
import logging
import os
import shutil
from types import SimpleNamespace

import pytest
import torch

from sparsegate.training import state_file
from sparsegate.training.state_file import StateFile


def _states(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, 7, generator=generator).to(dtype) for length in (3, 1, 8, 5)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_kept_has_the_same_bits_also_after_its_pages_are_released(tmp_path, dtype):
    file = StateFile(tmp_path, limit_bytes=1 << 20)
    states = _states(dtype)
    kept = [file.put(state) for state in states]
    for _ in range(2):
        assert all(torch.equal(one, other) for one, other in zip(kept, states, strict=True))
        file.release()


def test_states_that_need_several_chunks_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(state_file, "_CHUNK_BYTES", 100)  # the third state is larger
    file = StateFile(tmp_path, limit_bytes=1 << 20)
    states = _states()
    kept = [file.put(state) for state in states]
    assert all(torch.equal(one, other) for one, other in zip(kept, states, strict=True))


def test_no_more_is_kept_than_the_limit(tmp_path):
    file = StateFile(tmp_path, limit_bytes=340)
    kept = [file.put(state) for state in _states()]
    assert [state is not None for state in kept] == [True, True, False, True]
    assert file.size_bytes == 340


def test_nothing_shows_in_the_folder_so_that_a_killed_process_leaves_nothing(tmp_path):
    file = StateFile(tmp_path / "new", limit_bytes=1 << 20)
    assert file.put(_states()[0]) is not None
    assert list((tmp_path / "new").iterdir()) == []


def _assert_refused(file, caplog, reason):
    with caplog.at_level(logging.WARNING):
        assert [file.put(state) for state in _states()] == [None] * 4
    assert [record.getMessage() for record in caplog.records] == [
        f"outputs of frozen layers beyond 0.0 GB are not kept in {file._folder}, and computed in each epoch: {reason}"
    ]
    assert file.limit_bytes == 0


def test_a_full_disk_is_said_once_and_nothing_more_is_kept(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    _assert_refused(StateFile(tmp_path, limit_bytes=1 << 20), caplog, "No space left on device")


def test_half_of_the_free_space_is_left(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2_000_000))
    assert StateFile(tmp_path, limit_bytes=1_000_000).put(_states()[0]) is not None
    _assert_refused(StateFile(tmp_path, limit_bytes=1_000_001), caplog, "half of the free space is taken")


def test_a_folder_that_can_not_be_written_is_said_once(tmp_path, caplog):
    (tmp_path / "file").touch()
    _assert_refused(StateFile(tmp_path / "file", limit_bytes=1 << 20), caplog, "File exists")


def test_where_space_can_not_be_reserved_nothing_is_kept_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(state_file, "_CAN_RESERVE", False)
    file = StateFile(tmp_path, limit_bytes=1 << 20)
    assert file.put(_states()[0]) is None
    assert file.limit_bytes == 0
