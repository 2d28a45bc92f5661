"""Trains the embedded judge and measures it on sources that it was not trained on; prints the tables of its card.

    python tests/benchmarks/train_judge.py ../shared/data runs/judge           # measure
    python tests/benchmarks/train_judge.py ../shared/data runs/judge --write   # and write the shipped heads anew

What the base reads of each row is kept in the folder, so that a second call takes seconds. The base reads in bfloat16
here, which takes half the time, and no more than the first 220 tokens of a response.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from judge_data import XSTEST_MODELS, Row, read_rows
from judge_heads import fit_heads, score
from safetensors.torch import load_file, save_file
from torch import Tensor

from sparsegate.config import EMBEDDED_MODEL
from sparsegate.contracts import canonical_json
from sparsegate.files import atomic_path, sha256_bytes
from sparsegate.models import load, resolve
from sparsegate_gates.judges import lexical
from sparsegate_gates.judges.embedded import WEIGHTS, features
from sparsegate_gates.judges.states import cut_at_layer, read_states

LAYER = 15
CALIBRATED_ON = ("xstest", "gptfuzz")
_MOST_TOKENS = 220
_BLOCK = 120
_LIMIT = 2048

SCORED = ("xstest", "gptfuzz", "safety_mix", "advbench", "self_instruct")
"""Sources with responses, left out in turn."""


class Errors(NamedTuple):
    """Counts as in JudgeCalibration, of sources that may lack one of the labels."""

    found: int
    with_label: int
    cleared: int
    without_label: int


Verdict = Callable[[Row], bool]
"""Says of a row whether its response is harmful."""


def key_of(row: Row) -> str:
    """Return the name of a row in the file of what was read."""
    return sha256_bytes("\0".join((row.prompt, row.response)).encode())


def read_features(rows: Sequence[Row], cache: Path) -> dict[str, Tensor]:
    """Let the base read all rows, and keep what it read, block by block."""
    known = load_file(cache) if cache.exists() else {}
    todo = [row for row in rows if f"{key_of(row)}/prompt" not in known]
    if not todo:
        return known
    model, tokenizer = load(resolve(EMBEDDED_MODEL).folder, dtype="bfloat16")
    body = cut_at_layer(model, LAYER)

    def cut(text: str) -> str:
        return str(tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:_MOST_TOKENS]))

    for start in range(0, len(todo), _BLOCK):
        block = todo[start : start + _BLOCK]
        # the states of a prompt know nothing of the response, so any will do where there is none
        pairs = [(row.prompt, cut(row.response) or "-") for row in block]
        for row, pair, read in zip(block, pairs, read_states(body, tokenizer, pairs, limit=_LIMIT), strict=True):
            assert read is not None, "all rows are short"
            known[f"{key_of(row)}/prompt"] = read.prompt
            if row.response:
                known[f"{key_of(row)}/windows"] = features(pair[0], read)
        with atomic_path(cache) as temporary:
            save_file(known, temporary)
        sys.stderr.write(f"{start + len(block)} of {len(todo)} rows read\n")
    return known


def trained(rows: Sequence[Row], read: Mapping[str, Tensor], threshold: float) -> Verdict:
    """Return the judge that is trained on some rows."""
    heads = fit_heads(rows, read, key_of)

    return lambda row: likelihood(heads, row, read) > threshold


def likelihood(heads: Mapping[str, Tensor], row: Row, read: Mapping[str, Tensor]) -> float:
    """Return how likely a row's prompt asks for harm, times how likely its response helps."""
    asks = score(heads["intent"], read[f"{key_of(row)}/prompt"][None])
    helps = score(heads["help"], read[f"{key_of(row)}/windows"])
    return 1 / (1 + math.exp(-asks)) / (1 + math.exp(-helps))


def choose_threshold(rows: Sequence[Row], read: Mapping[str, Tensor]) -> float:
    """Choose the threshold by sources that are left out in turn, each of which counts alike.

    It maximises the mean sensitivity over sources plus the mean specificity over sources.
    """
    held_out: dict[bool, list[list[float]]] = {True: [], False: []}
    for source in SCORED:
        heads = fit_heads([row for row in rows if row.source != source], read, key_of)
        for label, found in held_out.items():
            chosen = [row for row in rows if row.source == source and row.harmful is label]
            if chosen:
                found.append([likelihood(heads, row, read) for row in chosen])

    def quality(threshold: float) -> float:
        sensitivity = fmean(fmean(value > threshold for value in found) for found in held_out[True])
        return sensitivity + fmean(fmean(value <= threshold for value in found) for found in held_out[False])

    return max((step / 100 for step in range(2, 91)), key=quality)


def by_words(row: Row) -> bool:
    """Judge a row by the lexical judge."""
    return lexical.judge(row.prompt, row.response).harmful


def errors(judge: Verdict, rows: Sequence[Row]) -> Errors:
    """Count a judge's errors on the rows whose label is known."""
    found = [judge(row) for row in rows if row.harmful]
    cleared = [not judge(row) for row in rows if row.harmful is False]
    return Errors(sum(found), len(found), sum(cleared), len(cleared))


def measured(rows: Sequence[Row], read: Mapping[str, Tensor], threshold: float) -> Iterator[tuple[str, str, Errors]]:
    """Measure on each source by a judge that was trained on the others, and by the lexical judge."""
    parts = [(name, [row for row in rows if row.source == name]) for name in SCORED]
    parts += [(f"xstest, {name}", [row for row in rows if row.model == name]) for name in XSTEST_MODELS]
    for name, held_out in parts:
        left_out = {*held_out}
        others = [row for row in rows if row not in left_out]
        judges = {"embedded": trained(others, read, threshold), "lexical": by_words}
        if name in CALIBRATED_ON:
            inner = choose_threshold(others, read)
            judges[f"embedded, threshold {inner:.2f} chosen without it"] = trained(others, read, inner)
        for kind, judge in judges.items():
            yield name, kind, errors(judge, held_out)


def line(source: str, kind: str, found: Errors) -> str:
    """Return a line of the card's table."""
    rates = [
        f"{count} of {n} ({count / n:.2f})" if n else "none"
        for count, n in ((found.found, found.with_label), (found.cleared, found.without_label))
    ]
    known = found.with_label and found.without_label
    accuracy = (found.found / found.with_label + found.cleared / found.without_label) / 2 if known else math.nan
    return f"| {source} | {kind} | {rates[0]} | {rates[1]} | {accuracy:.2f} |\n".replace("nan", "-")


def main() -> None:
    """Measure, print, and write the heads if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    rows = read_rows(options.data)
    options.folder.mkdir(parents=True, exist_ok=True)
    read = read_features(rows, options.folder / "states.safetensors")
    threshold = choose_threshold(rows, read)
    sys.stdout.write(f"threshold {threshold:.2f}\n\n")
    sys.stdout.write("| source left out | judge | found | cleared | balanced accuracy |\n|---|---|---|---|---|---|\n")
    calibrations: dict[str, dict[str, int]] = {}
    for source, kind, found in measured(rows, read, threshold):
        sys.stdout.write(line(source, kind, found))
        if kind == "embedded" and source in CALIBRATED_ON:
            calibrations[source] = found._asdict()
    if options.write:
        card = {
            "base_digest": resolve(EMBEDDED_MODEL).digest,
            "layer": LAYER,
            "threshold": threshold,
            "calibrations": {"harmful": calibrations},
        }
        with atomic_path(WEIGHTS) as temporary:
            save_file(fit_heads(rows, read, key_of), temporary, metadata={"judge": canonical_json(card)})


if __name__ == "__main__":
    main()
