import threading
import time

import pytest

from sparsegate.errors import ModelError
from sparsegate.models.cache import cache_folder, publish


def _write(folder):
    (folder / "file").write_text("whole")


def test_an_explicit_cache_folder_wins_over_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEGATE_CACHE", str(tmp_path / "environment"))
    assert cache_folder(tmp_path / "given") == tmp_path / "given"
    assert cache_folder() == tmp_path / "environment"


def test_a_published_folder_is_not_built_again(tmp_path):
    publish(tmp_path / "model", _write)

    def refuse(folder):
        raise AssertionError("built twice")

    assert (publish(tmp_path / "model", refuse) / "file").read_text() == "whole"


def test_a_failed_build_leaves_nothing_behind(tmp_path):
    def fail(folder):
        _write(folder)
        raise ModelError("no network")

    with pytest.raises(ModelError, match="no network"):
        publish(tmp_path / "model", fail)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_the_leftover_of_a_killed_run_is_removed_and_not_used(tmp_path):
    leftover = tmp_path / ".model.abc.partial"
    leftover.mkdir()
    (leftover / "file").write_text("half")
    assert (publish(tmp_path / "model", _write) / "file").read_text() == "whole"
    assert not leftover.exists()


def test_two_runs_at_once_build_once(tmp_path):
    builds = []

    def slow(folder):
        builds.append(folder)
        time.sleep(0.2)
        _write(folder)

    threads = [threading.Thread(target=publish, args=(tmp_path / "model", slow)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1


def test_a_cache_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelError, match=r"model\.cache_dir or SPARSEGATE_CACHE"):
        publish(tmp_path / "file" / "models" / "model", _write)
