"""Writes the files of pilot_clinc150.yaml and pilot_jnli.yaml from public data sets, which are no part of the project.

python tests/benchmarks/pilot_data.py ../shared/data runs/pilot_data

Args: the folder that holds ``clinc150/data_small.json`` with ``clinc150/domains.json`` and ``jglue/jnli-valid.json`` as
their authors publish them, and a folder to write to.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

_TRAIN, _VALIDATION, _EVALUATION = 100, 20, 50  # messages of each department
_RELATIONS = {"entailment": "含意", "contradiction": "矛盾", "neutral": "中立"}


def write_data(public: Path, folder: Path) -> None:
    """Write ``clinc150_train.jsonl``, ``clinc150_evaluation.jsonl`` and ``jnli.jsonl``."""
    folder.mkdir(parents=True, exist_ok=True)
    domains = json.loads((public / "clinc150" / "domains.json").read_text(encoding="utf-8"))
    department = {intent: name.replace("_", " ") for name, intents in domains.items() for intent in intents}
    parts = json.loads((public / "clinc150" / "data_small.json").read_text(encoding="utf-8"))
    _write(folder / "clinc150_train.jsonl", _routed(parts["train"], department, _TRAIN + _VALIDATION))
    _write(folder / "clinc150_evaluation.jsonl", _routed(parts["test"], department, _EVALUATION))
    lines = (public / "jglue" / "jnli-valid.json").read_text(encoding="utf-8").splitlines()
    _write(folder / "jnli.jsonl", (_related(json.loads(line)) for line in lines if line.strip()))


def _routed(messages: list[list[str]], department: dict[str, str], count: int) -> list[dict[str, str]]:
    """Return the first messages of each department, its intents in turn."""
    by_intent: dict[str, list[str]] = defaultdict(list)
    for text, intent in messages:
        by_intent[intent].append(text)
    rows: dict[str, list[dict[str, str]]] = defaultdict(list)
    for turn in range(max(map(len, by_intent.values()))):
        for intent, texts in by_intent.items():
            name = department[intent]
            if turn < len(texts) and len(rows[name]) < count:
                rows[name].append({"text": texts[turn], "department": name})
    return [row for same in rows.values() for row in same]


def _related(pair: dict[str, str]) -> dict[str, str]:
    return {"text": f"前提: {pair['sentence1']}\n仮説: {pair['sentence2']}", "relation": _RELATIONS[pair["label"]]}


def _write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    write_data(Path(sys.argv[1]), Path(sys.argv[2]))
