"""Writes the files of quality_*.yaml and claims.yaml from public data sets, which are not part of the project.

python tests/benchmarks/quality_data.py ../shared/data runs/quality_data

Args: the folder that holds ``banking77/train.csv``, ``trec/TREC.train`` and ``gsm8k/train.jsonl`` as their authors
publish them, and a folder to write to.
"""

import csv
import json
import sys
from collections.abc import Iterable
from pathlib import Path

_TREC = {
    "ABBR": "abbreviation",
    "DESC": "description",
    "ENTY": "entity",
    "HUM": "human",
    "LOC": "location",
    "NUM": "number",
}
_TEXT_ROWS = 400


def write_data(public: Path, folder: Path) -> None:
    """Write ``banking77.jsonl``, ``trec.jsonl``, ``gsm8k.jsonl`` and ``general_text.jsonl``."""
    folder.mkdir(parents=True, exist_ok=True)
    with (public / "banking77" / "train.csv").open(encoding="utf-8", newline="") as file:
        rows = [{"text": row["text"], "label": row["category"].replace("_", " ")} for row in csv.DictReader(file)]
    _write(folder / "banking77.jsonl", rows)
    lines = (public / "trec" / "TREC.train").read_text(encoding="latin-1").splitlines()
    pairs = (line.split(" ", 1) for line in lines if line.strip())
    _write(folder / "trec.jsonl", ({"text": text, "label": _TREC[kind.split(":")[0]]} for kind, text in pairs))
    problems = [json.loads(line) for line in (public / "gsm8k" / "train.jsonl").read_text("utf-8").splitlines()]
    _write(folder / "general_text.jsonl", ({"text": problem["question"]} for problem in problems[:_TEXT_ROWS]))
    _write(folder / "gsm8k.jsonl", problems[_TEXT_ROWS:])


def _write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    write_data(Path(sys.argv[1]), Path(sys.argv[2]))
