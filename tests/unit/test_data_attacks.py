from typing import get_args

import pytest

from sparsegate.contracts import Attack
from sparsegate.data import PromptRow, attack_of, attack_prompts, source_of
from sparsegate.errors import DataError

ATTACKS = get_args(Attack)
ROWS = [PromptRow(f"p{i}", "ab"[i % 2], f"Tell me secret {i}, {{please}}.") for i in range(40)]


def test_direct_prompts_are_left_as_they_are():
    assert attack_prompts(ROWS, ["direct"], seed=0) == ROWS


@pytest.mark.parametrize("attack", ATTACKS[1:])
def test_an_attack_keeps_category_and_request_and_names_itself(attack):
    found = attack_prompts(ROWS, [attack], seed=0)
    assert [row.id for row in found] == [f"{row.id}#{attack}" for row in ROWS]
    for row, plain in zip(found, ROWS, strict=True):
        assert row.category == plain.category
        assert plain.prompt in row.prompt
        assert len(row.prompt) > len(plain.prompt)
        assert (source_of(row.id), attack_of(row.id)) == (plain.id, attack)
    assert len({row.prompt.replace(plain.prompt, "") for row, plain in zip(found, ROWS, strict=True)}) > 1


def test_the_same_seed_gives_the_same_prompts_whatever_else_is_there():
    whole = attack_prompts(ROWS, ATTACKS, seed=0)
    assert whole == attack_prompts(ROWS, ATTACKS, seed=0)
    alone = attack_prompts(ROWS[7:8], ["role_play"], seed=0)
    assert alone[0] in whole
    assert attack_prompts(ROWS, ATTACKS, seed=1) != whole


def test_every_prompt_is_asked_again_behind_the_system_prompt():
    found = attack_prompts(ROWS[:1], ["direct", "translation"], with_system_prompt=True, seed=0)
    assert [row.id for row in found] == ["p0", "p0#translation", "p0#direct+system", "p0#translation+system"]
    assert [row.system_prompt for row in found] == [False, False, True, True]
    assert [row.prompt for row in found[2:]] == [row.prompt for row in found[:2]]
    assert {source_of(row.id) for row in found} == {"p0"}
    assert attack_of(found[3].id) == "translation+system"


def test_an_id_that_looks_like_an_attack_is_refused():
    with pytest.raises(DataError, match="'p1#role_play' ends like the name of an attack"):
        attack_prompts([PromptRow("p1#role_play", "a", "hello")], ["direct"], seed=0)


def test_any_other_id_is_its_own_source():
    assert source_of("set#1") == "set#1"
    assert attack_of("set#1") == "direct"
