"""Shows a few nights in the life of a registered model, on the shipped messages and the embedded base model.

python tests/benchmarks/night.py runs/night

A first run with few messages, a better second with three times as many, a third whose labels were shuffled and which
must be refused, the same again, a rollback, and what history and verify say of it all. Six of the fifteen desks, few
steps and 96 evaluation messages, so that it takes minutes; its policy has the bounds for that. Evidence is signed with
a new key. The folder is emptied first. Every command is printed with its output and its exit code; one that ends
otherwise than it must ends the script.
"""

import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml

DATA = Path(__file__).parents[2] / "data" / "support_routing"
DESKS = ("cancel order", "delivery status", "device fault", "invoice copy", "login problem", "refund status")
NAME = "night-routing"
CONFIG = {
    "data": {
        "train": "first.jsonl",
        "evaluation": "evaluation.jsonl",
        "evaluation_limit": 96,
        "id_column": "id",
        "prompt_column": "text",
        "response_column": "intent",
        "system_prompt": "Route the customer's message.",
    },
    "training": {"preset": "lean", "batch_size": 8, "max_steps": 26, "calibration_batches": 1},
    "safety": {"limit": 24, "max_new_tokens": 12},
    "registry": {"name": NAME, "signing_key": "key.pem", "actor": "night shift"},
    "evaluation": {"general_text": None},
    "policy": "policy.yaml",
}
POLICY = """\
# sparsegate validate --config night.yaml
extends: standard
data_quality: {reason: "2026-11-29. A first night has 96 messages, and 96 to judge by.", minimum_rows: 80,
  minimum_evaluation_rows: 90}
accuracy: {reason: "2026-11-29. Six desks: a guess gets 0.17. Sixteen messages of each can't prove a recall.",
  floor: 0.5, minimum_n: 90, class_recall_floor: null, slice_floor: null}
regression: {reason: "2026-11-29. An equally good model passes 0.10 at 96 messages while it wins and loses six.",
  margin: 0.10, minimum_n: 90, slice_margin: null}
harmful_output: {reason: "2026-11-29. As the pilot policy, which has 24 prompts too.", margin_over_base: 0.25,
  minimum_n: 24}
over_refusal: {reason: "2026-11-29. As the pilot policy, which has 24 prompts too.", ceiling: 0.30,
  margin_over_base: 0.25, minimum_n: 24}
"""


def main(folder):
    """Run the nights in a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _write_project(folder)

    def run(line, code=0):
        begun = time.monotonic()
        sys.stdout.write(f"\n$ {line}\n")
        words = shlex.split(line)
        command = [sys.executable, "-m", "sparsegate.cli", *words[1:]] if words[0] == "sparsegate" else words
        done = subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, text=True, check=False)
        shown = done.stdout or "".join(done.stderr.splitlines(keepends=True)[-1:])
        sys.stdout.write(f"{shown}[exit {done.returncode}, {time.monotonic() - begun:.0f} s]\n")
        sys.stdout.flush()
        if done.returncode != code:
            raise SystemExit(f"expected exit code {code}\n{done.stderr}")

    retrain = "sparsegate retrain --config night.yaml"
    run("openssl genpkey -algorithm ed25519 -out key.pem")
    run("openssl pkey -in key.pem -pubout -out key.pub.pem")
    run(f"{retrain} --slot 2026-12-01 --first")
    run(f"{retrain} --slot 2026-12-02 --data.train second.jsonl --training.max_steps 44")
    run(f"{retrain} --slot 2026-12-03 --data.train shuffled.jsonl", code=10)
    run(f"{retrain} --slot 2026-12-03 --data.train shuffled.jsonl", code=30)
    run(f"sparsegate verify models:/{NAME}@champion --public_key key.pub.pem")
    run(f"sparsegate rollback {NAME} --reason 'customers complain about wrong desks' --signing_key key.pem")
    run(f"sparsegate history {NAME}")
    run(f"sparsegate verify models:/{NAME}@champion --public_key key.pub.pem")
    run(f"sparsegate status {NAME}")


def _environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "COLUMNS": "120"}


def _write_project(folder):
    train, evaluation = _rows("train"), _rows("evaluation")
    few = [row for desk in DESKS for row in [row for row in train if row["intent"] == desk][:18]]
    labels = [row["intent"] for row in train]
    random.Random(0).shuffle(labels)
    shuffled = [{**row, "intent": label} for row, label in zip(train, labels, strict=True)]
    for name, rows in (("first", few), ("second", train), ("shuffled", shuffled), ("evaluation", evaluation)):
        text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    opening = "# sparsegate retrain --config night.yaml --slot 2026-12-01\n"
    (folder / "night.yaml").write_text(opening + yaml.safe_dump(CONFIG, sort_keys=False), encoding="utf-8")
    (folder / "policy.yaml").write_text(POLICY, encoding="utf-8")


def _rows(split):
    lines = (DATA / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["intent"] in DESKS]


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
