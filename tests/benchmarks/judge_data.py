"""Answers with known labels, by which the embedded judge is trained and measured.

They come from public data sets, which are not part of the project, and from its own. Each has its own kind of labels;
here all are put in the same terms.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sparsegate.data import PromptRow, attack_prompts
from sparsegate.files import sha256_bytes

OWN = Path(__file__).parents[2] / "data" / "safety"
XSTEST_MODELS = ("gpt4", "llama2new", "llama2orig", "mistralguard", "mistralinstruct")
# rows taken of each source, by label (harmful, not harmful, not known); chosen by digest, so the same each time
TAKE = {
    "xstest": (136, 240, 0),
    "gptfuzz": (120, 120, 0),
    "safety_mix": (0, 240, 0),
    "self_instruct": (0, 80, 0),
    "advbench": (100, 0, 0),
    "red_instruct": (0, 0, 240),
    "off_topic": (0, 80, 0),
    "plain": (0, 0, 160),
    "framed": (0, 0, 120),
    "own_prompts": (0, 0, 280),
}


class Row(NamedTuple):
    """A prompt, mostly with a response; None where the source does not say.

    Args:
        source: The data set.
        model: Who answered.
        prompt: What was asked.
        response: What was answered; empty where only the prompt is known.
        asks: The prompt asks for harm.
        helps: The response does what was asked.
    """

    source: str
    model: str
    prompt: str
    response: str
    asks: bool
    helps: bool | None = None

    @property
    def harmful(self) -> bool | None:
        if not self.response or (self.asks and self.helps is None):
            return None
        return self.asks and bool(self.helps)


def read_rows(folder: Path) -> list[Row]:
    """Read all sources and take of each what TAKE says.

    Args:
        folder: Where the public data sets lie, each in a folder of its name.
    """
    taken: list[Row] = []
    counts: Counter[tuple[str, bool | None]] = Counter()
    rows = {row[2:4]: row for row in _all_rows(folder)}.values()
    for row in sorted(rows, key=lambda row: sha256_bytes("\0".join(row[2:4]).encode())):
        most = dict(zip((True, False, None), TAKE[row.source], strict=True))[row.harmful]
        if counts[row.source, row.harmful] < most:
            counts[row.source, row.harmful] += 1
            taken.append(row)
    return taken


def _all_rows(folder: Path) -> Iterator[Row]:
    yield from _xstest(folder / "xstest")
    yield from _gptfuzz(folder / "gptfuzz_labeled")
    tasks = list(_self_instruct(folder / "self_instruct" / "user_oriented_instructions.jsonl"))
    yield from tasks
    for row in _json_lines(OWN / "safety_mix.jsonl"):
        declined = row["kind"] == "refuse"
        yield Row("safety_mix", "own", row["prompt"], row["response"], declined, not declined)
    goals = [
        Row("advbench", "target", row["goal"], row["target"], True, True)
        for row in _csv(folder / "advbench" / "harmful_behaviors.csv")
    ]
    yield from goals
    asked = [*_red_instruct(folder / "red_instruct")]
    plain = [*_plain(folder)]
    yield from asked
    yield from plain
    yield from _off_topic(asked, tasks, folder / "banking77" / "categories.json")
    for row in _json_lines(OWN / "red_team.jsonl"):
        yield Row("own_prompts", "", row["prompt"], "", True)
    for row in _json_lines(OWN / "benign.jsonl"):
        yield Row("own_prompts", "", row["prompt"], "", False)
    yield from _framed([*asked, *goals])
    yield from _framed([*plain[::30], *tasks])  # about as many as harmful ones


def _xstest(folder: Path) -> Iterator[Row]:
    """Human labels of five models' answers. Whether a partial refusal helps is left open."""
    for model in XSTEST_MODELS:
        for row in _csv(folder / f"xstest_v2_completions_{model}.csv"):
            helps = {"1_full_compliance": True, "2_full_refusal": False}.get(row["final_label"])
            yield Row("xstest", model, row["prompt"], row["completion"], row["type"].startswith("contrast"), helps)


def _gptfuzz(folder: Path) -> Iterator[Row]:
    """Answers to harmful questions behind jailbreaks (which are not given); an answer with both labels is left out."""
    questions = {row["index"]: row["text"] for row in _csv(folder / "question_list.csv")}
    labels: dict[tuple[str, str], set[str]] = {}
    for row in _csv(folder / "train_filtered.csv"):
        labels.setdefault((questions[row["question"]], row["Response"].strip()), set()).add(row["label"])
    for (question, response), found in labels.items():
        if len(found) == 1 and response:
            yield Row("gptfuzz", "unnamed", question, response, True, found == {"1"})


def _self_instruct(path: Path) -> Iterator[Row]:
    for row in _json_lines(path):
        given = row["instances"][0]
        prompt = "\n".join(part for part in (row["instruction"], given["input"]) if part)
        yield Row("self_instruct", "human", prompt[:600], given["output"], False, True)


def _off_topic(asked: Sequence[Row], tasks: Sequence[Row], labels: Path) -> Iterator[Row]:
    """Put answers to something else, and bare labels, behind requests for harm: no help."""
    names = json.loads(labels.read_text(encoding="utf-8"))
    for number, row in enumerate(asked):
        other = tasks[number % len(tasks)].response if number % 2 else names[number % len(names)].replace("_", " ")
        yield Row("off_topic", "mixed", row.prompt, other, True, False)


def _red_instruct(folder: Path) -> Iterator[Row]:
    categories = json.loads((folder / "catqa_english.json").read_text(encoding="utf-8"))
    questions = [question for parts in categories.values() for part in parts.values() for question in part]
    questions += json.loads((folder / "dangerousqa.json").read_text(encoding="utf-8"))
    yield from (Row("red_instruct", "", question, "", True) for question in questions)


def _plain(folder: Path) -> Iterator[Row]:
    yield from (Row("plain", "", row["text"], "", False) for row in _csv(folder / "banking77" / "train.csv"))
    intents = json.loads((folder / "clinc150" / "data_small.json").read_text(encoding="utf-8"))["train"]
    yield from (Row("plain", "", text, "", False) for text, _ in intents)
    yield from (Row("plain", "", row["question"], "", False) for row in _json_lines(folder / "gsm8k" / "train.jsonl"))


def _framed(rows: Iterable[Row]) -> Iterator[Row]:
    """Put prompts into the frames of attacks, which must not look harmful by themselves."""
    prompts = [PromptRow(f"{number}", "", row.prompt[:300]) for number, row in enumerate(rows)]
    asks = {f"{number}": row.asks for number, row in enumerate(rows)}
    for row in attack_prompts(prompts, ["role_play", "prefix_injection", "refusal_suppression", "translation"], seed=0):
        yield Row("framed", "", row.prompt, "", asks[row.id.partition("#")[0]])


def _csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())
