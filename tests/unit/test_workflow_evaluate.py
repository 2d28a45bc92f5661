"""What is asked behind the system prompt, and what is not."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from sparsegate.config import ModelConfig, RunConfig, SafetyConfig
from sparsegate.contracts import Generation, Prediction, Sample, TextScore
from sparsegate.data import ChatTemplate, PromptRow
from sparsegate.errors import DataError, EvidenceError
from sparsegate.evaluation.generation import generate, response_nll
from sparsegate.files import read_records
from sparsegate.models import BaseModel
from sparsegate.registry.envelope import Statement, seal
from sparsegate.registry.package import EVIDENCE_FILE, EVIDENCE_TYPE, ServingSpec
from sparsegate.workflow.candidate import Subject, stored_cost
from sparsegate.workflow.evaluate import _Evaluator, generation_settings

SYSTEM = "w5 w6 w7"


def _spec(system_prompt):
    return ServingSpec(
        task="classification",
        base_source="base",
        base_sha256=None,
        base_digest="b" * 64,
        labels=("w2", "w3"),
        system_prompt=system_prompt,
        max_tokens=64,
        max_new_tokens=4,
        trust_remote_code=False,
        delta_sha256="d" * 64,
        sparsegate_version="0",
    )


def _subject(folder):
    return Subject("candidate", "digest", BaseModel(folder, "base", "b" * 64), None, _spec(SYSTEM))


def test_only_the_marked_prompts_get_the_system_prompt_and_the_interface_is_asked_once(
    tmp_path, tiny_model, tiny_tokenizer
):
    rows = (PromptRow("p", "a", "w20 w21"), PromptRow("p#direct+system", "a", "w20 w21", system_prompt=True))
    inputs = SimpleNamespace(evaluation=(Sample("e", "w9", "w2"),), red_team=rows, benign=rows[:1], general=())
    config = RunConfig(model=ModelConfig(cache_dir=str(tmp_path / "cache")), safety=SafetyConfig(max_new_tokens=6))
    run = SimpleNamespace(config=config, inputs=inputs, manifest=SimpleNamespace(code_version="0"))
    evaluator = _Evaluator(run, tiny_model, tiny_tokenizer, _subject(tmp_path), tmp_path)
    evaluator.answers()
    evaluator.free_text()

    written = read_records(tmp_path / "generations.red_team.candidate.jsonl", Generation)
    expected = []
    for system in (None, SYSTEM):
        template = ChatTemplate(tiny_tokenizer, system_prompt=system, max_tokens=64)
        expected += generate(tiny_model, tiny_tokenizer, [template.encode_prompt("w20 w21")], max_new_tokens=6)
    assert [line.response for line in written] == [answer.text for answer in expected]
    assert written[0].response != written[1].response
    assert [line.id for line in read_records(tmp_path / "predictions.red_team.candidate.jsonl", Prediction)] == ["p"]


def test_a_base_found_elsewhere_or_a_longer_limit_of_free_text_asks_no_label_again(
    tmp_path, tiny_model, tiny_tokenizer, caplog
):
    caplog.set_level("INFO")
    inputs = SimpleNamespace(
        evaluation=(Sample("e", "w9", "w2"),), red_team=(PromptRow("p", "a", "w20"),), benign=(), general=()
    )

    def asked(limit, source):
        caplog.clear()
        safety = SafetyConfig(max_new_tokens=limit)
        config = RunConfig(model=ModelConfig(cache_dir=str(tmp_path / "cache")), safety=safety)
        run = SimpleNamespace(config=config, inputs=inputs, manifest=SimpleNamespace(code_version="0"))
        subject = Subject(
            "base", "digest", BaseModel(tmp_path, source, "digest"), None, replace(_spec(SYSTEM), base_source=source)
        )
        evaluator = _Evaluator(run, tiny_model, tiny_tokenizer, subject, tmp_path)
        evaluator.answers()
        evaluator.free_text()
        return [record.getMessage().split()[1] for record in caplog.records if record.name.endswith("evaluate")]

    everything = ["predictions.base", "generations.red_team.base", "generations.benign.base"]
    assert asked(2, "here") == everything
    assert asked(2, "there") == []
    assert asked(3, "there") == everything[1:]


def test_general_texts_are_scored_in_free_chat_and_cut_to_the_models_context(tmp_path, tiny_model, tiny_tokenizer):
    tiny_model.config.max_position_embeddings = 16
    long = " ".join(f"w{token}" for token in range(10, 60))
    texts = (Sample("a", "w9", "w2 w3", {"kind": "short"}), Sample("b", "w9", long, {"kind": "long"}))
    inputs = SimpleNamespace(evaluation=(Sample("e", "w9", "w2"),), red_team=(), benign=(), general=texts)
    config = RunConfig(model=ModelConfig(cache_dir=str(tmp_path / "cache")))
    run = SimpleNamespace(config=config, inputs=inputs, manifest=SimpleNamespace(code_version="0"))
    evaluator = _Evaluator(run, tiny_model, tiny_tokenizer, _subject(tmp_path), tmp_path)
    evaluator.answers()
    evaluator.free_text()

    scores = read_records(tmp_path / "general.candidate.jsonl", TextScore)
    template = ChatTemplate(tiny_tokenizer, system_prompt=None, max_tokens=64)
    encoded = template.encode(texts[0])
    assert scores[0].tokens == len(encoded.response_ids)
    assert scores[0].nats == pytest.approx(response_nll(tiny_model, [encoded])[0] * scores[0].tokens)
    assert scores[1].tokens == 16 - len(encoded.prompt_ids)


def test_a_general_prompt_that_leaves_no_room_for_its_text_is_named(tmp_path, tiny_model, tiny_tokenizer):
    tiny_model.config.max_position_embeddings = 4
    texts = (Sample("g7", "w9 w10 w11 w12 w13", "w2", {"kind": "k"}),)
    inputs = SimpleNamespace(evaluation=(Sample("e", "w9", "w2"),), red_team=(), benign=(), general=texts)
    config = RunConfig(model=ModelConfig(cache_dir=str(tmp_path / "cache")))
    run = SimpleNamespace(config=config, inputs=inputs, manifest=SimpleNamespace(code_version="0"))
    evaluator = _Evaluator(run, tiny_model, tiny_tokenizer, _subject(tmp_path), tmp_path)
    with pytest.raises(DataError, match="'g7'"):
        evaluator.free_text()


def test_the_settings_of_generation_are_told_to_the_gates():
    settings = generation_settings(RunConfig(safety=SafetyConfig(attacks=("direct", "role_play"), max_new_tokens=9)))
    assert settings == {
        "sampling": "greedy",
        "max_new_tokens": 9,
        "batch_size": 64,
        "device": "cpu",
        "attacks": ["direct", "role_play"],
        "attack_seed": 0,
        "with_system_prompt": False,
    }


def test_what_a_version_took_is_read_from_its_sealed_evidence_alone(tmp_path):
    assert stored_cost(tmp_path) is None
    evidence = tmp_path / EVIDENCE_FILE
    evidence.write_text(seal(Statement({}, EVIDENCE_TYPE, {"cost": {"train_seconds": 7.0}}), None), encoding="utf-8")
    assert stored_cost(tmp_path) == {"train_seconds": 7.0}
    evidence.write_text('{"payload": "eyJ0cmFpbl9zZWNvbmRzIjogMX0="}', encoding="utf-8")
    with pytest.raises(EvidenceError, match="not a sealed statement"):
        stored_cost(tmp_path)
