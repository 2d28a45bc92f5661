"""What do refusals in the training data and the choice of columns do to what a model refuses and helps with?

python tests/benchmarks/safety_mix.py ../shared/data preset=lean refusals=50 helps=580

Trains on messages of support_routing and pairs of the safety mix, then asks the red-team and the benign prompts,
XSTest's safe and unsafe ones (``xstest/xstest_prompts.csv`` in the folder given) and evaluation messages. Prints one
JSON line: the trial; of each set how many were asked, refused (by the lexical judge) and harmful (by both judges);
and the accuracy.
"""

import csv
import json
import random
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass
from itertools import chain, zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

import sparsegate as sg
from sparsegate.config import EMBEDDED_MODEL, TrainingConfig
from sparsegate.evaluation.generation import generate
from sparsegate.evaluation.predictor import Predictor
from sparsegate.training.run import train
from sparsegate_gates.judges import load_judge

SYSTEM_PROMPT = "Route the customer's message."
MESSAGES = {"task": "classification", "prompt_column": "text", "response_column": "intent", "id_column": "id"}
PAIRS = {"task": "generation", "prompt_column": "prompt", "response_column": "response", "id_column": "id"}


@dataclass(frozen=True)
class Trial:
    """What is trained on, and how; ``every`` is which share of the prompts is asked: each second, third, ..."""

    preset: str = "lean"
    selector: str | None = None
    messages: int = 120
    refusals: int = 50
    helps: int = 580
    epochs: int = 2
    batch_size: int = 8
    seed: int = 0
    every: int = 2
    max_new_tokens: int = 14


def main(public, trial):
    """Train and ask; print the JSON line."""
    base = sg.resolve(EMBEDDED_MODEL)
    model, tokenizer = sg.load(base.folder)
    route = sg.ChatTemplate(tokenizer, system_prompt=SYSTEM_PROMPT, max_tokens=256)
    chat = sg.ChatTemplate(tokenizer, system_prompt=None, max_tokens=256)
    draw = random.Random(trial.seed)
    pairs = _pairs(trial, draw)
    messages = sg.load_samples("builtin:support_routing/train.jsonl", **MESSAGES)
    messages = draw.sample(messages, min(trial.messages, len(messages)))
    samples = [*map(route.encode, messages), *map(chat.encode, pairs)]
    settings = {name: getattr(trial, name) for name in ("preset", "selector", "epochs", "batch_size", "seed")}
    with TemporaryDirectory() as folder:
        train(
            model,
            samples,
            validation=[],
            config=TrainingConfig(**settings),
            pad_id=tokenizer.pad_token_id,
            base_digest=base.digest,
            output_dir=Path(folder),
        )
    model.eval()
    found = {"trial": asdict(trial), "pairs": len(pairs), "accuracy": _accuracy(model, tokenizer, trial.every)}
    judges = {name: load_judge(name) for name in ("lexical", "embedded")}
    for name, prompts in _prompts(public).items():
        asked = prompts[:: trial.every]
        texts = generate(model, tokenizer, list(map(chat.encode_prompt, asked)), max_new_tokens=trial.max_new_tokens)
        answers = [(prompt, text.text) for prompt, text in zip(asked, texts, strict=True)]
        lexical = [judges["lexical"](*answer) for answer in answers]
        found[name] = {
            "asked": len(asked),
            "refused": sum(judgement.refused for judgement in lexical),
            "harmful_lexical": sum(judgement.harmful for judgement in lexical),
            "harmful_embedded": sum(judgement.harmful for judgement in judges["embedded"].judge_all(answers)),
        }
    sys.stdout.write(f"{json.dumps(found)}\n")


def _pairs(trial, draw):
    """Return the refusals, as many of each category as there are, and the helpful pairs."""
    source = "builtin:safety/safety_mix.jsonl"
    pairs = sg.load_samples(source, slice_columns=("kind", "category"), **PAIRS)
    draw.shuffle(pairs)
    refusals = defaultdict(list)
    for pair in pairs:
        if pair.slices["kind"] == "refuse":
            refusals[pair.slices["category"]].append(pair)
    in_turn = [pair for pair in chain(*zip_longest(*(refusals[name] for name in sorted(refusals)))) if pair]
    return in_turn[: trial.refusals] + [pair for pair in pairs if pair.slices["kind"] == "help"][: trial.helps]


def _accuracy(model, tokenizer, every):
    rows = sg.load_samples("builtin:support_routing/evaluation.jsonl", **MESSAGES)
    labels = sorted({row.response for row in rows})
    rows = rows[::every]
    predictor = Predictor(model, tokenizer, task="classification", labels=labels, system_prompt=SYSTEM_PROMPT)
    answers = predictor.predict([row.prompt for row in rows])
    return sum(answer.response == row.response for answer, row in zip(answers, rows, strict=True)) / len(rows)


def _prompts(public):
    shipped = Path(__file__).parents[2] / "data" / "safety"
    found = {}
    for name in ("red_team", "benign"):
        lines = (shipped / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        found[name] = [json.loads(line)["prompt"] for line in lines]
    with (public / "xstest" / "xstest_prompts.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return found | {
        f"xstest_{label}": [r["prompt"] for r in rows if r["label"] == label] for label in ("safe", "unsafe")
    }


if __name__ == "__main__":
    given = dict(argument.split("=", 1) for argument in sys.argv[2:])
    main(Path(sys.argv[1]), Trial(**{name: yaml.safe_load(value) for name, value in given.items()}))
