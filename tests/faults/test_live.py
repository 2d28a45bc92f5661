"""A running process takes up a new champion bit for bit, and keeps the old one whatever is wrong with the new."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from byte_model import write_byte_model

import sparsegate
from sparsegate.errors import EvidenceError, ServingError, UsageError
from sparsegate.models import load, resolve
from sparsegate.registry.connection import connect
from sparsegate.sparse.delta import Delta, DeltaEntry, apply_delta, read_delta, write_delta

WEIGHT = "model.layers.0.mlp.down_proj.weight"
PROMPTS = ["where is my refund?", "it crashes", "hello"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    write_byte_model(folder, num_layers=1)
    return resolve(str(folder))


@pytest.fixture
def served(registry, base, monkeypatch):
    """A registry whose versions have deltas of a real base; each differs, and the first is champion."""
    registry.base = base
    made = registry.make_run

    def make_run(run_key, *given):
        run = replace(made(run_key, *given), base=registry.base)
        weight = load(registry.base.folder)[0].get_parameter(WEIGHT).detach()
        columns = torch.arange(int(run_key[1:]), weight.shape[1], 2, dtype=torch.int32)
        old = weight[:, columns].clone()
        new = old + torch.randn(old.shape, generator=torch.Generator().manual_seed(int(run_key[1:])))
        entry = DeltaEntry("column", tuple(weight.shape), columns, old, new)
        write_delta(
            Delta({WEIGHT: entry}, registry.base.digest, {"plan": {"first_layer": 0, "density": 0.1}}), run.delta
        )
        return run

    monkeypatch.setattr(registry, "make_run", make_run)
    registry.add("k1")
    assert registry.move("promote", "--version", "1")[0] == 0
    return registry


def promote_second(registry):
    registry.add("k2", champion=1)
    assert registry.move("promote", "--version", "2")[0] == 0


def live(registry, **options):
    return sparsegate.load_champion("desk", tracking_uri=registry.uri, **options)


def weights(model):
    """Return the weights that answer."""
    return {name: value.clone() for name, value in model._live.answering.model.state_dict().items()}


def expected_weights(registry, base, version):
    model, _ = load(base.folder)
    apply_delta(model, read_delta(registry.package(version) / "delta.safetensors"))
    return model.state_dict()


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_new_champion_is_taken_up_in_place_bit_for_bit(served, base):
    model = live(served)
    assert (model.version, model.reload()) == (1, False)
    first = model.predict(PROMPTS)
    assert list(first) == ["response", "log_probability"]
    pd.testing.assert_frame_equal(first, model.predict(pd.DataFrame({"prompt": PROMPTS})))
    in_memory = model._live.answering.model

    promote_second(served)
    pd.testing.assert_frame_equal(first, model.predict(PROMPTS))  # not before it is asked to
    assert (model.reload(), model.version) == (True, 2)
    assert model._live.answering.model is in_memory, "the base was not loaded again"
    assert_equal(weights(model), expected_weights(served, base, 2))
    pd.testing.assert_frame_equal(model.predict(PROMPTS), live(served).predict(PROMPTS))
    assert not model.predict(PROMPTS).equals(first)

    assert served.move("rollback")[0] == 0
    assert (model.reload(), model.version) == (True, 1)
    assert_equal(weights(model), expected_weights(served, base, 1))
    pd.testing.assert_frame_equal(model.predict(PROMPTS), first)


def test_a_champion_on_another_base_is_loaded_beside_the_old_one(served, base, tmp_path):
    model = live(served)
    write_byte_model(tmp_path / "other", num_layers=2)
    served.base = resolve(str(tmp_path / "other"))
    promote_second(served)
    assert (model.reload(), model.version) == (True, 2)
    assert_equal(weights(model), expected_weights(served, served.base, 2))
    (tmp_path / "other" / "config.json").write_text("{}", encoding="utf-8")
    assert served.move("rollback")[0] == 0
    assert model.reload()
    assert served.move("rollback", "--to", "2")[0] == 0
    with pytest.raises(ServingError, match=r"put the original files back; desk version 1 goes on answering"):
        model.reload()
    assert_equal(weights(model), expected_weights(served, base, 1))


@pytest.mark.parametrize("harm", ["evidence", "delta", "gone", "alias"])
def test_a_champion_that_does_not_verify_is_not_taken_up(served, base, harm):
    model = live(served)
    promote_second(served)
    package = served.package(2)
    if harm == "gone":
        (package / "delta.safetensors").unlink()
    elif harm == "alias":
        connect(served.uri).delete_registered_model_alias("desk", "champion")
    else:
        path = package / {"evidence": "evidence.dsse.json", "delta": "delta.safetensors"}[harm]
        content = bytearray(path.read_bytes())
        content[-2] ^= 1
        path.write_bytes(content)
    with pytest.raises(ServingError, match="desk version 1 goes on answering"):
        model.reload()
    assert model.version == 1
    assert_equal(weights(model), expected_weights(served, base, 1))


def test_weights_that_were_touched_in_memory_are_noticed_and_nothing_is_swapped(served):
    model = live(served)
    promote_second(served)
    model._live.answering.model.get_parameter(WEIGHT).data += 1
    before = weights(model)
    with pytest.raises(ServingError, match="does not hold the delta's new values"):
        model.reload()
    assert_equal(weights(model), before)


def test_only_a_version_signed_by_the_key_is_served(served):
    _, public = served.key("ours")
    with pytest.raises(EvidenceError, match="desk version 1 can't be served: the evidence is UNSIGNED"):
        live(served, public_key=Path(public))
    with pytest.raises(UsageError, match="there is no shop@champion"):
        sparsegate.load_champion("shop", tracking_uri=served.uri)


def test_predictions_under_way_end_on_the_old_weights_and_the_next_are_of_the_new(served, monkeypatch):
    model = live(served)
    first = model.predict(PROMPTS)
    promote_second(served)
    second = live(served).predict(PROMPTS)
    inside, may_go_on, answers = threading.Event(), threading.Event(), {}
    predictor = model._live.answering.predictor
    predict = predictor.predict

    def slow(prompts):
        inside.set()
        assert may_go_on.wait(60)
        return predict(prompts)

    monkeypatch.setattr(predictor, "predict", slow)
    under_way = threading.Thread(target=lambda: answers.update(under_way=model.predict(PROMPTS)))
    under_way.start()
    assert inside.wait(60)
    reloading = threading.Thread(target=model.reload)
    reloading.start()
    while reloading.is_alive() and not model._turnstile._is_closed:
        time.sleep(0.01)
    assert reloading.is_alive(), "the swap waits for the prediction"
    later = threading.Thread(target=lambda: answers.update(later=model.predict(PROMPTS)))
    later.start()
    may_go_on.set()
    for thread in (under_way, reloading, later):
        thread.join(60)
    pd.testing.assert_frame_equal(answers["under_way"], first)
    pd.testing.assert_frame_equal(answers["later"], second)


def test_many_threads_get_answers_of_one_version_each_while_it_is_exchanged(served):
    model = live(served)
    promote_second(served)
    whole = {1: model.predict(PROMPTS), 2: live(served).predict(PROMPTS)}
    seen, failures = [], []

    def ask():
        try:
            for _ in range(6):
                seen.append(model.predict(PROMPTS))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert model.reload()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert len(seen) == 24
    assert all(any(answers.equals(frame) for frame in whole.values()) for answers in seen)
    assert model.predict(PROMPTS).equals(whole[2])
