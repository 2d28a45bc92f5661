import errno
import hashlib
import math
import os
from dataclasses import dataclass

import pytest

from sparsegate.errors import DataError, StorageError, UsageError
from sparsegate.files import (
    atomic_path,
    read_json,
    read_records,
    remove_leftovers,
    sha256_bytes,
    sha256_file,
    write_json,
    write_records,
    write_text,
)


@dataclass(frozen=True)
class Record:
    name: str
    size: int = 0


def _fail_half_way(path, error):
    with atomic_path(path) as temporary:
        temporary.write_text("new, but only")
        raise error


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "result.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="half way"):
        _fail_half_way(path, RuntimeError("half way"))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_fails_makes_no_file_where_there_was_none(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        _fail_half_way(tmp_path / "result.txt", KeyboardInterrupt())
    assert list(tmp_path.iterdir()) == []


def test_the_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "folder" / "result.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_full_disk_is_worth_a_retry_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "result.txt"
    write_text(path, "old")
    with pytest.raises(StorageError, match=r"can't write .*result.txt: No space left on device; free some space"):
        _fail_half_way(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_of_killed_writers_go_and_files_stay(tmp_path):
    for name in ("package/spec.json", "package/.spec.json.a1b2", "champion/.version-1.x/file", ".desk.lock"):
        write_text(tmp_path / name, "text")
    remove_leftovers(tmp_path)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert files == [".desk.lock", "package/spec.json"]


def test_a_place_that_can_not_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"can't write .*file/result.txt: .*; choose a folder you can write to"):
        write_text(tmp_path / "file" / "result.txt", "text")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_a_clear_error(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(UsageError, match="Permission denied; choose a folder you can write to"):
        write_text(tmp_path / "result.txt", "text")


def test_json_reads_back_and_refuses_nan_without_touching_the_old_file(tmp_path):
    path = tmp_path / "value.json"
    value = {"b": [1, 2.5, None], "a": "größer"}
    write_json(path, value)
    assert read_json(path) == value
    assert "größer" in path.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="Out of range float values"):
        write_json(path, {"a": math.nan})
    assert read_json(path) == value


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe"])
def test_a_file_that_is_not_json_is_a_clear_error(tmp_path, content):
    path = tmp_path / "value.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"value.json is not JSON"):
        read_json(path)


def test_missing_files_are_clear_errors(tmp_path):
    with pytest.raises(DataError, match=r"none.json does not exist"):
        read_json(tmp_path / "none.json")
    with pytest.raises(DataError, match=r"none.jsonl does not exist"):
        read_records(tmp_path / "none.jsonl", Record)


def test_records_read_back_with_line_separators_and_blank_lines(tmp_path):
    path = tmp_path / "records.jsonl"
    records = [Record("line\nbreak"), Record("separator\u2028inside", 2), Record("größer", 3)]
    write_records(path, records)
    assert read_records(path, Record) == records
    path.write_text(path.read_text(encoding="utf-8") + "\n  \n", encoding="utf-8")
    assert read_records(path, Record) == records


@pytest.mark.parametrize(
    "line", ['{"name": "a", "colour": 1}', "{}", '["a"]', '"a"', "3", "{", "null"], ids=lambda line: line
)
def test_a_line_that_is_not_such_a_record_is_named(tmp_path, line):
    path = tmp_path / "records.jsonl"
    path.write_text('{"name": "good"}\n' + line + "\n")
    with pytest.raises(DataError, match=r"records.jsonl:2: not a Record"):
        read_records(path, Record)


def test_records_that_are_not_utf8_are_a_clear_error(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"name": "\xff"}\n')
    with pytest.raises(DataError, match=r"records.jsonl is not UTF-8: invalid start byte at byte 10"):
        read_records(path, Record)


def test_digests_are_sha256_of_the_bytes(tmp_path):
    content = os.urandom(3 << 20)
    (tmp_path / "file").write_bytes(content)
    assert sha256_file(tmp_path / "file") == sha256_bytes(content) == hashlib.sha256(content).hexdigest()
