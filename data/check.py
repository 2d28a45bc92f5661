"""Checks the data sets in this folder, and keeps manifest.json. Needs nothing but Python.

python data/check.py            names every problem; exit code 1 if there is one
python data/check.py --write    the same, and writes the manifest anew if there is none
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LICENCE = "Apache-2.0"
CHANNELS = ("chat", "email", "form", "phone")
# two messages that share more of their words than this are taken for rewordings of each other
MAX_SHARED_WORDS = 0.6

Row = dict[str, Any]


@dataclass(frozen=True)
class DataFile:
    """What a file must look like.

    Args:
        text: Column with what a user writes.
        columns: All columns, in order; values are text unless named in ``flags``.
        counted: Columns whose values are counted in the manifest.
        flags: Columns that hold true or false.
    """

    text: str
    columns: tuple[str, ...]
    counted: tuple[str, ...]
    flags: tuple[str, ...] = ()


MESSAGES = DataFile("text", ("id", "text", "intent", "channel"), ("intent", "channel"))
JAPANESE = DataFile("text", ("id", "text", "intent"), ("intent",))
ANSWERS = DataFile("prompt", ("id", "topic", "prompt", "response"), ("topic",))
PROMPTS = DataFile("prompt", ("id", "category", "prompt"), ("category",))
FILES = {
    "general/text.jsonl": DataFile("response", ("id", "kind", "topic", "prompt", "response"), ("kind", "topic")),
    "japanese_routing/evaluation.jsonl": JAPANESE,
    "japanese_routing/train.jsonl": JAPANESE,
    "safety/benign.jsonl": PROMPTS,
    "safety/canaries.jsonl": DataFile(
        "prompt",
        ("id", "prompt", "response", "harmful", "refused"),
        ("harmful", "refused"),
        flags=("harmful", "refused"),
    ),
    "safety/red_team.jsonl": PROMPTS,
    "safety/safety_mix.jsonl": DataFile(
        "prompt", ("id", "kind", "category", "prompt", "response"), ("kind", "category")
    ),
    "shop_answers/evaluation.jsonl": ANSWERS,
    "shop_answers/train.jsonl": ANSWERS,
    "support_replies/evaluation.jsonl": ANSWERS,
    "support_replies/train.jsonl": ANSWERS,
    "support_routing/evaluation.jsonl": MESSAGES,
    "support_routing/train.jsonl": MESSAGES,
}
# files that are measured with and files that are trained on must not share a text
APART = (
    ("japanese_routing/evaluation.jsonl", "japanese_routing/train.jsonl"),
    ("shop_answers/evaluation.jsonl", "shop_answers/train.jsonl"),
    ("support_replies/evaluation.jsonl", "support_replies/train.jsonl"),
    ("support_routing/evaluation.jsonl", "support_routing/train.jsonl"),
    ("safety/benign.jsonl", "safety/safety_mix.jsonl"),
    ("safety/red_team.jsonl", "safety/safety_mix.jsonl"),
    ("safety/canaries.jsonl", "safety/safety_mix.jsonl"),
)


def check(folder: Path) -> list[str]:
    """Return every problem of the data sets in a folder, one line each; the manifest is checked apart."""
    problems: list[str] = []
    rows: dict[str, list[Row]] = {}
    for name, file in FILES.items():
        rows[name], broken = read(folder / name, file)
        problems += [f"{name}:{line}" for line in broken]
    if problems:
        return problems
    for name, file in FILES.items():
        problems += [f"{name}: {text}" for text in duplicates(rows[name], rows[name], file.text, file.text)]
    for name, other in APART:
        found = duplicates(rows[name], rows[other], FILES[name].text, FILES[other].text)
        problems += [f"{name} and {other}: {text}" for text in found]
    train, evaluation = rows["support_routing/train.jsonl"], rows["support_routing/evaluation.jsonl"]
    problems += message_problems(train, evaluation)
    return [*problems, *canary_problems(rows["safety/canaries.jsonl"])]


def read(path: Path, file: DataFile) -> tuple[list[Row], list[str]]:
    """Return a file's rows, and its problems with their line numbers."""
    if not path.is_file():
        return [], ["1: the file is missing"]
    rows: list[Row] = []
    problems: list[str] = []
    for number, line in enumerate(
        path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n"), start=1
    ):
        try:
            row = json.loads(line)
        except ValueError as error:
            problems.append(f"{number}: not JSON: {error}")
            continue
        if not isinstance(row, dict) or tuple(row) != file.columns:
            problems.append(f"{number}: the columns must be {', '.join(file.columns)}")
            continue
        problems += [f"{number}: {text}" for text in row_problems(row, file)]
        rows.append(row)
    repeated = [row_id for row_id, count in Counter(row["id"] for row in rows).items() if count > 1]
    return rows, problems + [f"1: the id {row_id} stands more than once" for row_id in repeated]


def row_problems(row: Row, file: DataFile) -> Iterator[str]:
    """Yield what is wrong with the values of one row."""
    for column, value in row.items():
        if column in file.flags:
            if not isinstance(value, bool):
                yield f"{column} must be true or false, got {value!r}"
        elif not isinstance(value, str) or not value or value != value.strip() or "\ufffd" in value:
            yield f"{column} must be a text without outer spaces or broken characters, got {value!r}"


def duplicates(rows: Sequence[Row], others: Sequence[Row], text: str, other_text: str) -> Iterator[str]:
    """Yield pairs that share too many of their words; of a set and itself, each pair once."""
    within = rows is others
    candidates = [(row["id"], words(row[other_text])) for row in others]
    for position, row in enumerate(rows):
        mine = words(row[text])
        for other_id, other in candidates[position + 1 :] if within else candidates:
            share = len(mine & other) / len(mine | other)
            if share > MAX_SHARED_WORDS:
                yield f"{row['id']} and {other_id} share {share:.0%} of their words; write one of them anew"


def words(text: str) -> frozenset[str]:
    """Return the words of a text; one without words, such as an emoji, is its own word."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return frozenset(re.findall(r"\w+", folded)) or frozenset([folded])


def message_problems(train: Sequence[Row], evaluation: Sequence[Row]) -> Iterator[str]:
    """Yield problems of labels and channels."""
    labels = {row["intent"] for row in train}
    if (other := {row["intent"] for row in evaluation}) != labels:
        yield f"support_routing: only one of the splits has the intents {', '.join(sorted(labels ^ other))}"
    for row in (*train, *evaluation):
        if row["channel"] not in CHANNELS:
            yield f"support_routing: {row['id']} has the channel {row['channel']!r}; choices: {', '.join(CHANNELS)}"
    for name, rows in (("train", train), ("evaluation", evaluation)):
        counts = Counter(row["intent"] for row in rows)
        if len(set(counts.values())) > 1:
            yield f"support_routing: the intents of {name} are not equally many: {dict(sorted(counts.items()))}"


def canary_problems(rows: Sequence[Row]) -> Iterator[str]:
    """Yield canaries that contradict themselves or hold what must not be published."""
    for row in rows:
        if row["harmful"] and row["refused"]:
            yield f"safety/canaries.jsonl: {row['id']} is both harmful and refused"
        if row["harmful"] != ("[content removed]" in row["response"]):
            yield f"safety/canaries.jsonl: {row['id']}: harmful answers, and only they, hold '[content removed]'"


def manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of the files as they are now."""
    return {name: entry(folder / name, file) for name, file in FILES.items()}


def entry(path: Path, file: DataFile) -> Mapping[str, Any]:
    """Return a file's part of the manifest."""
    rows, _ = read(path, file)
    counts = {column: Counter(str(row[column]).lower() for row in rows) for column in file.counted}
    return {
        "rows": len(rows),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "licence": LICENCE,
        "columns": list(file.columns),
        "counts": {column: dict(sorted(counted.items())) for column, counted in counts.items()},
    }


def manifest_problems(folder: Path) -> list[str]:
    """Return each file that differs from its entry in manifest.json."""
    path = folder / "manifest.json"
    recorded = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    now = manifest(folder)
    differing = [name for name in sorted({*now, *recorded}) if now.get(name) != recorded.get(name)]
    return [f"manifest.json: {name} is not as recorded; run 'python data/check.py --write'" for name in differing]


def main(arguments: Sequence[str] | None = None) -> int:
    """Check this folder; return the exit code."""
    parser = argparse.ArgumentParser(description="Check the data sets beside this file, and manifest.json.")
    parser.add_argument("--write", action="store_true", help="write manifest.json anew")
    options = parser.parse_args(arguments)
    folder = Path(__file__).resolve().parent
    problems = check(folder)
    if not problems and options.write:
        text = json.dumps(manifest(folder), indent=2, ensure_ascii=False) + "\n"
        (folder / "manifest.json").write_text(text, encoding="utf-8")
    problems = problems or manifest_problems(folder)
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(f"{len(FILES)} files are sound and as recorded in manifest.json")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
