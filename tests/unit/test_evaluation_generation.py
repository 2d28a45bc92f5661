import pytest
import torch
import torch.nn.functional as F

from sparsegate.evaluation.generation import generate, response_nll

END = 1


@pytest.fixture
def prompts(make_samples):
    return [sample.prompt_ids for sample in make_samples(9)]


def _greedy(model, prompt, max_new_tokens):
    """The greedy continuation, by a full pass for each token."""
    tokens = list(prompt)
    with torch.no_grad():
        while len(tokens) < len(prompt) + max_new_tokens:
            tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
            if tokens[-1] == END:
                break
    return tokens[len(prompt) :]


def test_generation_is_greedy_and_the_same_in_batches_and_one_by_one(any_model, tiny_tokenizer, prompts):
    alone = generate(any_model, tiny_tokenizer, prompts, max_new_tokens=8, batch_size=1)
    assert generate(any_model, tiny_tokenizer, prompts, max_new_tokens=8, batch_size=4) == alone
    for prompt, answer in zip(prompts, alone, strict=True):
        tokens = _greedy(any_model, prompt, 8)
        assert answer.text == tiny_tokenizer.decode(tokens, skip_special_tokens=True).strip()
        assert answer.finished == (tokens[-1] == END)


def test_generation_is_the_same_where_prompts_begin_alike(any_model, tiny_tokenizer, prompts):
    alike = [(20, 21, 22, 23, *prompt) for prompt in prompts]
    answers = generate(any_model, tiny_tokenizer, alike, max_new_tokens=6, batch_size=4)
    for prompt, answer in zip(alike, answers, strict=True):
        tokens = _greedy(any_model, prompt, 6)
        assert answer.text == tiny_tokenizer.decode(tokens, skip_special_tokens=True).strip()


def test_generation_reads_what_prompts_share_once(tiny_model, tiny_tokenizer):
    read = []

    def count(_, __, inputs):
        read.append(inputs["input_ids"].numel())

    tiny_model.register_forward_pre_hook(count, with_kwargs=True)
    prompts = [(20, 21, 22, 23, own) for own in (30, 31, 32)]
    generate(tiny_model, tiny_tokenizer, prompts, max_new_tokens=1, batch_size=2)
    assert read == [4, 2, 1]


def test_a_model_that_ends_at_once_gives_finished_empty_answers(tiny_model, tiny_tokenizer, prompts):
    tiny_model.lm_head = _Always(END)
    answers = generate(tiny_model, tiny_tokenizer, prompts[:3], max_new_tokens=4)
    assert [tuple(answer) for answer in answers] == [("", True)] * 3


def test_an_answer_that_hits_the_limit_is_not_finished(tiny_model, tiny_tokenizer, prompts):
    tiny_model.lm_head = _Always(7)
    answers = generate(tiny_model, tiny_tokenizer, prompts[:3], max_new_tokens=3)
    assert [tuple(answer) for answer in answers] == [("w7 w7 w7", False)] * 3


class _Always(torch.nn.Module):
    """A head that always predicts one token."""

    def __init__(self, token):
        super().__init__()
        self.token = token

    def forward(self, hidden):
        return F.one_hot(torch.full(hidden.shape[:-1], self.token), 96).float()


def test_progress_counts_every_prompt_once(tiny_model, tiny_tokenizer, prompts):
    counts = []
    generate(tiny_model, tiny_tokenizer, prompts, max_new_tokens=1, batch_size=4, progress=counts.append)
    assert counts == [4, 4, 1]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_response_nll_is_the_mean_loss_of_each_response(any_model, make_samples, batch_size):
    samples = make_samples(7)
    expected = []
    for sample in samples:
        labels = torch.tensor([[-100] * len(sample.prompt_ids) + list(sample.response_ids)])
        with torch.no_grad():
            tokens = torch.tensor([sample.prompt_ids + sample.response_ids])
            expected.append(float(any_model(input_ids=tokens, labels=labels).loss))
    assert response_nll(any_model, samples, batch_size=batch_size) == pytest.approx(expected, abs=1e-5)


def test_the_nll_of_no_samples_is_an_empty_list(tiny_model):
    assert response_nll(tiny_model, []) == []
