"""Show that PEFT opens our exports with equal logits, that deltas swap in a running process, and what two add up to.

python tests/benchmarks/exports.py FOLDER

Trains the embedded model twice for a few steps, by columns and by single entries of the same maps; ``sparsegate
export`` makes a LoRA of the one, a SHiRA of the other and a sum of both. Ends with 1 if anything that must be equal is
not. Needs peft (the extra ``bench``), 5 GB and two minutes. FOLDER is made; it must not be there yet.
"""

import sys
import time
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import torch
from peft import PeftModel

import sparsegate as sg
from sparsegate.cli import main as sparsegate
from sparsegate.config import EMBEDDED_MODEL
from sparsegate.sparse.compose import overlap
from sparsegate.sparse.peft_import import from_peft

STEPS, BATCH = 12, 8
ATOL = 1e-3  # of logits: PEFT adds in another order
COLUMNS = {"task": "classification", "prompt_column": "text", "response_column": "intent"}
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
failed = []


def say(text, *, holds=True):
    sys.stdout.write(text + ("\n" if holds else "   DOES NOT HOLD\n"))
    failed.extend([] if holds else [text])


def train(base, file, *, support, density):
    model, tokenizer = sg.load(base.folder)
    template = sg.ChatTemplate(tokenizer, system_prompt="Route the customer's message.", max_tokens=256)
    samples = [template.encode(row) for row in sg.load_samples("builtin:support_routing/train.jsonl", **COLUMNS)]
    data = sg.SampleDataModule(samples, batch_size=BATCH, pad_id=tokenizer.pad_token_id)
    tuner = sg.SparseFineTuner(model, support=support, density=density, frozen_depth=0.667)
    L.Trainer(accelerator="cpu", max_steps=STEPS, **QUIET).fit(tuner, datamodule=data)
    sg.write_delta(tuner.delta(base_digest=base.digest), file)
    say(f"{support}s: {tuner.num_trainable:,} entries, {STEPS} steps; {file.stat().st_size / 1e6:.1f} MB")


def weights_of(model):
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


@contextmanager
def applied(model, delta):
    sg.apply_delta(model, delta)
    yield model
    sg.revert_delta(model, delta)


def show_peft(base, model, ids, file, to_format):
    """Export a delta and hold what PEFT makes of it against the delta itself."""
    folder = file.with_name(to_format)
    assert sparsegate(["export", str(file), str(folder), "--format", to_format, "--base", EMBEDDED_MODEL]) == 0
    with applied(model, sg.read_delta(file)):
        ours = model(ids).logits
    moved = (ours - model(ids).logits).abs().max()
    opened = PeftModel.from_pretrained(sg.load(base.folder)[0], folder).eval()
    apart = (opened(ids).logits - ours).abs().max()
    merged = (opened.merge_and_unload()(ids).logits - ours).abs().max()
    text = f"  {ours.numel():,} logits: training moved them by up to {moved:.2f}; PEFT differs by at most {apart:.1e}"
    say(f"{text}, merged by PEFT {merged:.1e}", holds=bool(max(apart, merged) < ATOL < moved))
    with applied(model, from_peft(folder, model, base_digest=base.digest)):
        same = torch.equal(model(ids).logits, ours)
    say(f"  the adapter read back into a delta: logits bit-identical {same}", holds=same)


def show_sum(model, original, first, second, total):
    """Add two deltas up, say what they share, and compare the sum with the changes of both."""
    assert sparsegate(["export", *map(str, (first, second, total)), "--format", "delta", "--conflict", "sum"]) == 0
    one, other = sg.read_delta(first), sg.read_delta(second)
    say(f"  {overlap([one, other])[0]}")
    error = torch.zeros_like(original)
    for delta, sign in ((one, 1), (other, 1), (sg.read_delta(total), -1)):
        with applied(model, delta):
            error += sign * (weights_of(model) - original)
    say(f"  the sum is within {error.abs().max():.1e} of both changes", holds=bool(error.abs().max() < 1e-6))


def show_swap(model, original, file):
    """Apply and revert a delta in this process, and look at the bits of every weight."""
    delta, text = sg.read_delta(file), file.name
    for swap in (sg.apply_delta, sg.revert_delta):
        started = time.perf_counter()
        swap(model, delta)
        seconds = time.perf_counter() - started
        differ = int((weights_of(model).view(torch.int32) != original.view(torch.int32)).sum())
        text += f"; {swap.__name__} in {seconds:.3f} s, then {differ:,} entries differ from the base"
    say(text, holds=differ == 0)


def main(folder):
    folder.mkdir(parents=True)
    base = sg.resolve(EMBEDDED_MODEL)
    files = [folder / f"{name}.safetensors" for name in ("columns", "elements", "sum")]
    train(base, files[0], support="column", density=0.1)
    train(base, files[1], support="element", density=0.05)
    model, tokenizer = sg.load(base.folder)
    ids = tokenizer("My parcel arrived open, and a cup is broken.", return_tensors="pt").input_ids
    original = weights_of(model)
    with torch.no_grad():
        show_peft(base, model, ids, files[0], "lora")
        show_peft(base, model, ids, files[1], "shira")
        show_sum(model, original, *files)
        for file in files:
            show_swap(model, original, file)
    return len(failed) > 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
