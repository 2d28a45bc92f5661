import random

import pytest

from sparsegate.contracts import Sample
from sparsegate.data import (
    find_label_clashes,
    find_near_duplicates,
    find_near_leaks,
    find_template_collisions,
    normalise,
)
from sparsegate.data.overlap import mask_values

LONG = "my coffee machine shows a red light since the update on monday morning and makes no coffee"


def samples(prefix, *prompts):
    return [Sample(f"{prefix}{number}", prompt, "a") for number, prompt in enumerate(prompts)]


@pytest.mark.parametrize("text", ["where\u200bis my par\u00adcel", "\ufeffWHEREIS my par\u200dcel"])
def test_signs_that_are_not_seen_do_not_hide_that_texts_are_equal(text):
    assert normalise(text) == "whereis my parcel"


@pytest.mark.parametrize(
    "prompt",
    [
        LONG.replace("monday", "mondays"),
        f"Hello, {LONG}! thanks",
        LONG[12:],
    ],
)
def test_a_copy_with_few_changes_or_inside_a_longer_text_is_a_near_leak(prompt):
    train = samples("t", "where is my parcel", f"hello {LONG}, thank you")
    assert find_near_leaks(train, samples("e", prompt), share=0.9) == [("e0", "t1")]


@pytest.mark.parametrize(
    "prompt", [f"Hello {LONG}. Thank you", "my coffee", "where do I buy coffee for my machine today"]
)
def test_equal_texts_short_parts_and_texts_on_one_topic_are_no_near_leaks(prompt):
    assert find_near_leaks(samples("t", f"hello {LONG} thank you"), samples("e", prompt), share=0.9) == []


def test_texts_without_spaces_are_compared_too():
    text = "注文した商品がまだ届いていませんので配送状況を確認していただけますでしょうか"
    assert find_near_leaks(samples("t", text), samples("e", text + "お"), share=0.9) == [("e0", "t0")]


def test_near_duplicates_name_the_later_one_and_leave_out_equal_texts():
    found = find_near_duplicates(samples("t", LONG, LONG.upper(), LONG + "s", "where is my parcel"), share=0.9)
    assert found == [("t2", "t0")]


@pytest.mark.parametrize("share", [0.6, 0.75, 0.9, 1.0])
def test_the_search_finds_what_comparing_all_pairs_finds(share):
    from sparsegate.data.overlap import _shingles

    draw = random.Random(7)
    words = ["card", "order", "late", "my", "the", "is", "please", "refund", "where", "lost"]
    texts = sorted({" ".join(draw.choices(words, k=draw.randint(3, 7))) for _ in range(60)})
    texts = sorted({*texts, *(text + draw.choice(["s", " now", " for me", ""]) for text in texts)})
    draw.shuffle(texts)

    def resemblance(a, b):
        return len(_shingles(a) & _shingles(b)) / len(_shingles(a) | _shingles(b))

    expected = [
        (f"t{later}", f"t{earlier}")
        for later, text in enumerate(texts)
        if (earlier := next((e for e in range(later) if resemblance(text, texts[e]) >= share), None)) is not None
    ]
    assert find_near_duplicates(samples("t", *texts), share=share) == expected
    assert len(expected) >= 5 or share == 1


def test_prompts_that_differ_in_numbers_and_names_only_collide():
    train = samples("t", "Where is order 4711 for Jane Doe?", "Cancel order 12.")
    evaluation = samples("e", "where is order A-9 for Bob?", "Cancel order 12", "Cancel order twelve", "Mail jo@b.io")
    assert find_template_collisions(train, evaluation) == [("e0", "t0")]
    assert mask_values("Mail jo@b.io") == "mail value"


def test_an_evaluation_label_that_training_gives_otherwise_is_a_clash():
    train = [Sample("t0", "Stop it", "cancel"), Sample("t1", "hello", "greet"), Sample("t2", "hello!", "other")]
    evaluation = [Sample("e0", "stop it!", "complain"), Sample("e1", "Hello", "other"), Sample("e2", "new", "cancel")]
    assert find_label_clashes(train, evaluation) == [("e0", "t0")]
