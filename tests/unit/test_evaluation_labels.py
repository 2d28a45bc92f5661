import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, MistralConfig

from sparsegate.evaluation.labels import score_labels

END = 1
LABELS = [(5, END), (5, 6, END), (5, 6, 7, END), (8, 9, 10, 11, END), (8, 9, 12, END), (13, END)]


def _brute_force(model, prompts, labels):
    """The likeliest label and its log-probability by one full pass for each prompt and label."""
    best = []
    for prompt in prompts:
        scores = []
        for label in labels:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*prompt, *label]])).logits[0].float().log_softmax(-1)
            start = len(prompt) - 1
            scores.append(sum(float(logits[start + place, token]) for place, token in enumerate(label)))
        best.append((max(range(len(labels)), key=scores.__getitem__), max(scores)))
    return best


def _assert_equals_brute_force(model, prompts, labels, **options):
    scores = score_labels(model, prompts, labels, **options)
    expected = _brute_force(model, prompts, labels)
    assert [score.label for score in scores] == [label for label, _ in expected]
    assert [score.log_probability for score in scores] == pytest.approx([best for _, best in expected], abs=1e-4)


@pytest.fixture
def prompts(make_samples):
    return [sample.prompt_ids for sample in make_samples(20)]


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_scores_equal_brute_force_for_prompts_of_different_lengths(any_model, prompts, batch_size):
    _assert_equals_brute_force(any_model, prompts, LABELS, batch_size=batch_size)


@pytest.mark.parametrize("window", [4, 64], ids=["shorter than the texts", "longer"])
def test_scores_equal_brute_force_where_attention_has_a_window(prompts, window):
    config = MistralConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=window,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    _assert_equals_brute_force(AutoModelForCausalLM.from_config(config).eval(), prompts, LABELS, batch_size=3)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_scores_equal_brute_force_by_each_attention(tiny_model, prompts, attention):
    tiny_model.set_attn_implementation(attention)
    _assert_equals_brute_force(tiny_model, prompts, LABELS, batch_size=8)


def test_the_tiny_model_does_not_always_choose_the_same_label(tiny_model, prompts):
    assert len({score.label for score in score_labels(tiny_model, prompts, LABELS)}) > 1


@pytest.mark.parametrize("batch_size", [1, 4])
def test_scores_equal_brute_force_where_prompts_begin_alike(any_model, prompts, batch_size):
    alike = [(20, 21, 22, 23, 24, *prompt) for prompt in prompts]
    _assert_equals_brute_force(any_model, alike, LABELS, batch_size=batch_size)


def test_scores_equal_brute_force_where_one_prompt_is_the_beginning_of_the_others(tiny_model):
    _assert_equals_brute_force(tiny_model, [(20, 21), (20, 21, 22), (20, 21, 22, 23)], LABELS)


def test_equal_prompts_get_equal_scores(tiny_model):
    scores = score_labels(tiny_model, [(20, 21, 22)] * 3, LABELS)
    assert len(set(scores)) == 1
    _assert_equals_brute_force(tiny_model, [(20, 21, 22)] * 3, LABELS)


def test_a_single_prompt_and_a_prompt_of_one_token_are_scored(tiny_model):
    _assert_equals_brute_force(tiny_model, [(20, 21, 22)], LABELS)
    _assert_equals_brute_force(tiny_model, [(20,), (21, 22)], LABELS)


@pytest.mark.parametrize(
    "labels",
    [
        [(5, END)],
        [(5,), (6,)],
        [(5, 6, 7, 8, END), (5, 6, 7, 9, END)],
        [(5, 6, 7, 8, END)],
        [(token, END) for token in range(2, 96)],
    ],
    ids=["one", "single tokens", "a long shared beginning", "one long", "all tokens"],
)
def test_scores_equal_brute_force_for_all_shapes_of_label_sets(tiny_model, prompts, labels):
    _assert_equals_brute_force(tiny_model, prompts[:4], labels, batch_size=3)


@settings(max_examples=25, deadline=None)
@given(
    labels=st.lists(
        st.lists(st.integers(2, 6), min_size=1, max_size=4).map(tuple), min_size=1, max_size=8, unique=True
    ),
    prompts=st.lists(st.lists(st.integers(2, 4), min_size=1, max_size=4).map(tuple), min_size=1, max_size=5),
    batch_size=st.integers(1, 5),
)
def test_scores_equal_brute_force_whatever_the_labels_share(shared_model, labels, prompts, batch_size):
    ended = [(*label, END) for label in labels]
    scores = score_labels(shared_model, prompts, ended, batch_size=batch_size)
    expected = _brute_force(shared_model, prompts, ended)
    # labels may tie within rounding, so the score is compared and not the index
    assert [score.log_probability for score in scores] == pytest.approx([best for _, best in expected], abs=1e-4)


@pytest.fixture(scope="module")
def shared_model(make_model):
    return make_model("llama")


def test_ties_go_to_the_label_that_comes_first(tiny_model):
    tiny_model.lm_head.weight.data.zero_()
    labels = [(9, 8, END), (7, 3), (5, 3), (6, 3)]
    assert [score.label for score in score_labels(tiny_model, [(20, 21), (22,)], labels)] == [1, 1]


def _tokens_read(model, prompts, labels):
    read = []

    def count(_, __, inputs):
        read.append(inputs["input_ids"].numel())

    with model.register_forward_pre_hook(count, with_kwargs=True):
        score_labels(model, prompts, labels)
    return sum(read)


def test_no_token_of_prompt_or_labels_is_read_twice(tiny_model):
    tiny_model.lm_head.weight.data.zero_()  # all labels of a length tie, so that all are read
    labels = [(5, 6, 7, END), (5, 6, 8, END), (5, 9, 7, END)]
    assert _tokens_read(tiny_model, [(20, 21, 22)], labels) == 3 + len(
        {(5,), (5, 6), (5, 6, 7), (5, 6, 8), (5, 9), (5, 9, 7)}
    )


def test_a_sure_model_reads_one_label_only(tiny_model):
    tiny_model.lm_head = _Sure(5)
    assert (
        _tokens_read(tiny_model, [(20, 21, 22), (20, 21, 23)], [(8, 9, END), (5, 5, 5), (7, 6, END)]) == 2 + 2 + 2 * 2
    )


class _Sure(torch.nn.Module):
    """A head that all but rules out every token but one."""

    def __init__(self, token):
        super().__init__()
        self.token = token

    def forward(self, hidden):
        return 20 * torch.nn.functional.one_hot(torch.full(hidden.shape[:-1], self.token), 96).float()


def test_equal_prompts_are_read_once(tiny_model):
    labels = [(8, 9, END), (7, 6, END)]
    once, thrice = ([(20, 21, 22)] * times for times in (1, 3))
    assert _tokens_read(tiny_model, thrice, labels) == _tokens_read(tiny_model, once, labels)


def test_logits_that_are_no_number_give_the_first_label(tiny_model):
    tiny_model.lm_head.weight.data.fill_(torch.nan)
    assert [tuple(score) for score in score_labels(tiny_model, [(20, 21), (22,)], LABELS)] == [(0, -torch.inf)] * 2


def test_no_prompts_give_no_scores(tiny_model):
    assert score_labels(tiny_model, [], LABELS) == []


def test_progress_counts_every_prompt_once(tiny_model, prompts):
    counts = []
    score_labels(tiny_model, prompts, LABELS, batch_size=8, progress=counts.append)
    assert counts == [8, 8, 4]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "labels must not be empty"),
        ([(5, END), ()], "labels must not be empty"),
        ([(5, END), (5, END)], "labels must differ"),
        ([(5, 6), (9,), (5,)], "none may be the beginning of another; end each with the end token"),
    ],
)
def test_labels_that_can_not_be_told_apart_are_refused(tiny_model, labels, message):
    with pytest.raises(ValueError, match=message):
        score_labels(tiny_model, [(20, 21)], labels)


def test_an_empty_prompt_is_refused(tiny_model):
    with pytest.raises(ValueError, match="prompts must not be empty"):
        score_labels(tiny_model, [(20, 21), ()], LABELS)
