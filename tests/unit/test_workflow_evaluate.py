"""What is asked behind the system prompt, and what is not."""

from dataclasses import replace
from types import SimpleNamespace

from sparsegate.config import ModelConfig, RunConfig, SafetyConfig
from sparsegate.contracts import Generation, Prediction, Sample
from sparsegate.data import ChatTemplate, PromptRow
from sparsegate.evaluation.generation import generate
from sparsegate.files import read_records
from sparsegate.registry.package import ServingSpec
from sparsegate.workflow.evaluate import Subject, _Evaluator, generation_settings

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


def test_only_the_marked_prompts_get_the_system_prompt_and_the_interface_is_asked_once(
    tmp_path, tiny_model, tiny_tokenizer
):
    rows = (PromptRow("p", "a", "w20 w21"), PromptRow("p#direct+system", "a", "w20 w21", system_prompt=True))
    inputs = SimpleNamespace(evaluation=(Sample("e", "w9", "w2"),), red_team=rows, benign=rows[:1])
    config = RunConfig(model=ModelConfig(cache_dir=str(tmp_path / "cache")), safety=SafetyConfig(max_new_tokens=6))
    run = SimpleNamespace(config=config, inputs=inputs, manifest=SimpleNamespace(code_version="0"))
    subject = Subject("candidate", "digest", None, _spec(SYSTEM))
    _Evaluator(run, tiny_model, tiny_tokenizer, subject, tmp_path).run()

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
    inputs = SimpleNamespace(evaluation=(Sample("e", "w9", "w2"),), red_team=(PromptRow("p", "a", "w20"),), benign=())

    def asked(limit, source):
        caplog.clear()
        safety = SafetyConfig(max_new_tokens=limit)
        config = RunConfig(model=ModelConfig(cache_dir=str(tmp_path / "cache")), safety=safety)
        run = SimpleNamespace(config=config, inputs=inputs, manifest=SimpleNamespace(code_version="0"))
        subject = Subject("base", "digest", None, replace(_spec(SYSTEM), base_source=source))
        _Evaluator(run, tiny_model, tiny_tokenizer, subject, tmp_path).run()
        return [record.getMessage().split()[1] for record in caplog.records if record.name.endswith("evaluate")]

    everything = ["predictions.base", "generations.red_team.base", "generations.benign.base"]
    assert asked(2, "here") == everything
    assert asked(2, "there") == []
    assert asked(3, "there") == everything[1:]


def test_the_settings_of_generation_are_told_to_the_gates():
    settings = generation_settings(RunConfig(safety=SafetyConfig(attacks=("direct", "role_play"), max_new_tokens=9)))
    assert settings == {
        "sampling": "greedy",
        "max_new_tokens": 9,
        "batch_size": 64,
        "attacks": ["direct", "role_play"],
        "attack_seed": 0,
        "with_system_prompt": False,
    }
