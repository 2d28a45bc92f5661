import json
import math
import subprocess
import sys

import pytest
import torch
from rich.console import Console

from sparsegate.cli import main
from sparsegate.contracts import SupportKind
from sparsegate.data.datamodule import collate
from sparsegate.errors import DeltaError, ExitCode
from sparsegate.sparse.delta import Delta, DeltaEntry, write_delta
from sparsegate.training.module import SparseFineTuner
from sparsegate.workflow.inspection.plot import write_inspection_plot
from sparsegate.workflow.inspection.result import inspect_delta
from sparsegate.workflow.inspection.table import print_inspection

BASE = "b" * 64


def entry(ids, old, new, *, kind: SupportKind = "column", shape=(2, 4)):
    return DeltaEntry(kind, shape, torch.tensor(ids, dtype=torch.int32), torch.tensor(old), torch.tensor(new))


def small(**more):
    """A delta of two weights of layers 2 and 10 and of an embedding."""
    entries = {
        "model.layers.10.mlp.experts.7.up_proj.weight": entry([1], [[3.0], [4.0]], [[3.0], [4.5]]),
        "model.layers.2.self_attn.q_proj.weight": entry([0, 3], [[1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [2.0, 0.0]]),
        "model.embed_tokens.weight": entry([1], [[0.0] * 4], [[1.0] * 4], kind="row"),
    }
    return Delta({**entries, **more}, BASE, {})


@pytest.fixture
def write(tmp_path):
    def write(delta, name="delta.safetensors"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_delta(delta, path)
        return path

    return write


def shown(found, width=120):
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        print_inspection(found, console)
    return capture.get()


def test_a_trained_delta_shows_its_density_in_every_trained_layer_and_module(write, make_model, make_samples):
    tuner = SparseFineTuner(make_model("llama"), selector="random", density=0.25, frozen_depth=0.5)
    tuner.select([collate(make_samples(2), pad_id=0)])
    found = inspect_delta(write(tuner.delta(base_digest=BASE)))
    assert found.layers == [2, 3]
    assert found.modules == [
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    ]
    assert all(found.part(layer=layer, module=module).density == 0.25 for layer in (2, 3) for module in found.modules)
    assert sum(weight.trained for weight in found.weights) == tuner.num_trainable


def test_changes_are_norms_over_those_of_the_trained_entries_before(write):
    found = inspect_delta(write(small()))
    by_layer = {layer: found.part(layer=layer).relative_change for layer in found.layers}
    assert by_layer == {2: 2.0, 10: pytest.approx(0.1), None: None}  # the embedding's rows were zero
    assert [weight.layer for weight in found.largest_changes(2)] == [2, 10]
    assert {weight.layer: weight.moved for weight in found.weights} == {10: 1, 2: 1, None: 4}


def test_a_layer_is_the_first_number_of_a_name_and_experts_are_one_module(write):
    more = {"model.layers.10.mlp.experts.3.up_proj.weight": entry([0, 1, 2], [[1.0] * 3] * 2, [[1.0] * 3] * 2)}
    found = inspect_delta(write(small(**more)))
    assert found.modules == ["self_attn.q_proj", "mlp.experts.*.up_proj", "model.embed_tokens"]
    assert found.part(layer=10, module="mlp.experts.*.up_proj").density == 0.5
    assert found.part(layer=2, module="model.embed_tokens") is None


def test_layers_that_the_delta_leaves_alone_stand_in_one_row(write):
    lines = [line.split() for line in shown(inspect_delta(write(small()))).splitlines()]
    assert [line[0] for line in lines if line and line[0] in {"0-1", "2", "3-9", "10", "outside"}] == [
        *("0-1", "2", "3-9", "10", "outside"),
    ]


def test_the_table_fits_a_hundred_columns_and_says_what_made_the_delta(write):
    manifest = {
        "training": {"selector": "fisher", "seed": 3},
        "plan": {"first_layer": 2, "density": 0.05},
        "learning_rate": 0.002,
        "steps": 40,
    }
    text = shown(inspect_delta(write(Delta(small().entries, BASE, manifest))), width=100)
    assert "selector fisher, density 0.05, layers from 2, learning rate 0.002, steps 40, seed 3" in text
    assert BASE in text
    assert max(map(len, text.splitlines())) <= 100


def test_overlap_tells_what_two_deltas_share(write):
    other = {"model.layers.2.self_attn.q_proj.weight": entry([0], [[1.0], [0.0]], [[1.0], [-1.0]])}
    found = inspect_delta(write(small()), against=write(Delta(other, BASE, {}), "other.safetensors"))
    assert (found.overlap.shared_entries, found.overlap.share, found.overlap.sign_agreement) == (2, 1.0, 0.5)
    assert "shares 2 entries, 100.0% of the smaller mask; 50.0% of them move the same way" in " ".join(
        shown(found).split()
    )


def test_a_run_stands_for_the_delta_that_it_trained(write, tmp_path, capsys):
    path = write(small(), "runs/1a2b/train/delta.safetensors")
    assert main(["inspect", str(tmp_path / "runs" / "1a2b"), "--json"]) == ExitCode.PASSED
    told = json.loads(capsys.readouterr().out)
    assert (told["path"], told["base_digest"], told["all"]["trained"]) == (str(path), BASE, 10)
    assert [layer["layer"] for layer in told["layers"]] == [2, 10, None]


def test_the_plot_is_a_picture_and_nothing_else_is_written(write, tmp_path):
    found = inspect_delta(write(small()))
    write_inspection_plot(found, tmp_path / "plots" / "mask.png")
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["mask.png"]
    assert (tmp_path / "plots" / "mask.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "does not exist; give a delta file or the folder of a run"),
        (lambda folder: folder.mkdir(), "is not the folder of a run: it holds neither train/delta.safetensors nor"),
        (lambda folder: (folder.mkdir(), (folder / "manifest.json").write_text("{}")), "a run that has no delta yet"),
        (lambda folder: folder.write_bytes(b"no safetensors"), "is damaged"),
        (lambda folder: write_delta(Delta({}, BASE, {}), folder), "changes no weight"),
    ],
)
def test_what_is_no_delta_is_named_with_exit_code_2(make, message, tmp_path, capsys):
    make(tmp_path / "given")
    assert main(["inspect", str(tmp_path / "given")]) == ExitCode.USAGE
    told = capsys.readouterr()
    assert message in told.err
    assert str(tmp_path / "given") in told.err
    assert told.out == ""


def test_deltas_of_two_bases_are_not_compared(write):
    other = write(Delta(small().entries, "c" * 64, {}), "other.safetensors")
    with pytest.raises(DeltaError, match=r"other\.safetensors: the deltas belong to 2 different bases"):
        inspect_delta(write(small()), against=other)


def test_old_values_that_are_no_numbers_are_refused(write):
    nan = {"w.weight": entry([0], [[math.nan], [1.0]], [[1.0], [1.0]])}
    with pytest.raises(DeltaError, match=r"w\.weight: the old values hold NaN"):
        inspect_delta(write(Delta(nan, BASE, {})))


def test_json_holds_no_number_that_json_can_not(write):
    told = inspect_delta(write(small())).to_json()
    assert all(math.isfinite(w["change_norm"]) for w in told["weights"])
    json.dumps(told, allow_nan=False)


def test_no_model_library_is_loaded(write):
    script = (
        "import sys\nfrom sparsegate.cli import main\n"
        f"code = main(['inspect', {str(write(small()))!r}, '--json'])\n"
        "heavy = {'transformers', 'lightning', 'mlflow', 'great_expectations'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else code)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
