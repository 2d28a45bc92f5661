"""Turns samples into token ids by the model's own chat template."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, final

from sparsegate.contracts import EncodedSample, Sample
from sparsegate.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "probe"
_SEAM = "\ufdd0"  # a noncharacter: never part of a text


@final
class ChatTemplate:
    """Renders prompts and responses, and cuts prompts that are too long.

    With a chat template in the tokenizer, a sample is one user turn and one assistant turn. Without one it is
    ``User: {prompt}\\nAssistant:`` and `` {response}{end token}``, after the system prompt and a blank line if there is
    one.

    ``system_prompt=None`` means no system text. Some templates then put in a default of their own; an explicit empty
    system turn keeps it out, and is used where that makes the prompt shorter. A template that takes no system turn, or
    writes more than the default, keeps its own behaviour.

    Whatever a prompt's text looks like, it is read as text: a turn's end or another mark of the template typed by a
    user becomes the pieces it is spelled with, and not the model's own token.

    Args:
        tokenizer: The model's tokenizer.
        system_prompt: System message before every prompt.
        max_tokens: Longest prompt and response together, in tokens.

    Raises:
        DataError: If the template can't be used for training.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, system_prompt: str | None, max_tokens: int) -> None:
        self._tokenizer: Any = tokenizer
        self._max_tokens = max_tokens
        self._system_prompt = system_prompt
        marks = {*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())}
        self._mark = re.compile("|".join(re.escape(mark) for mark in sorted(marks) if len(mark.strip()) > 1) or r"(?!)")
        if tokenizer.chat_template and system_prompt is None:
            self._system_prompt = self._shorter_of_no_and_empty_system()
        self._turn_end = self._find_turn_end()
        self.turn_end_id: int = self._ids(self._turn_end)[-1]
        """The token that ends every response; generation stops there."""

    def encode(self, sample: Sample) -> EncodedSample:
        """Return the token ids of a sample, ``max_tokens`` at most; a long prompt loses the front of its text.

        Raises:
            DataError: If the response leaves no room for any of the prompt.
        """
        response_ids = self.encode_response(sample.response)
        try:
            prompt_ids = self._fit(sample.prompt, self._max_tokens - len(response_ids))
        except DataError as error:
            raise DataError(
                f"sample '{sample.id}': the response has {len(response_ids)} tokens, which leaves no room for the "
                f"prompt in data.max_tokens = {self._max_tokens}; raise it or shorten the response ({error})"
            ) from None
        return EncodedSample(sample.id, prompt_ids, response_ids)

    def encode_prompt(self, text: str) -> tuple[int, ...]:
        """Return the token ids up to where the response starts, ``max_tokens`` at most.

        Raises:
            DataError: If not even the template around the text fits.
        """
        return self._fit(text, self._max_tokens)

    def encode_response(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a response, ending with the turn-end token."""
        return self._ids(self._render_response(text) + self._turn_end)

    def _fit(self, text: str, budget: int) -> tuple[int, ...]:
        ids = self._ids(self._render_prompt(text))
        if len(ids) <= budget:
            return ids
        # the shortest cut from the front, in whole characters, that fits; the template around the text stays whole
        fits, kept = None, 0
        low, high = 1, len(text)
        while low <= high:
            middle = (low + high) // 2
            candidate = self._ids(self._render_prompt(text[middle:]))
            if len(candidate) <= budget:
                fits, kept, high = candidate, len(text) - middle, middle - 1
            else:
                low = middle + 1
        if fits is None or kept == 0:
            raise DataError(f"no text of the prompt fits into {max(budget, 0)} tokens beside the chat template")
        return fits

    def _ids(self, text: str) -> tuple[int, ...]:
        pieces = text.split(_SEAM)
        return tuple(token for piece in pieces for token in self._tokenizer.encode(piece, add_special_tokens=False))

    def _as_text(self, prompt: str) -> str:
        """Put a seam into each mark, where :meth:`_ids` takes it apart."""
        return self._mark.sub(lambda mark: f"{mark[0][0]}{_SEAM}{mark[0][1:]}", prompt.replace(_SEAM, ""))

    def _render(self, turns: list[dict[str, str]], *, for_generation: bool) -> str:
        from jinja2 import TemplateError

        try:
            rendered = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=for_generation)
        except TemplateError as error:
            raise DataError(
                f"the model's chat template refuses {[turn['role'] for turn in turns]} turns: {error}"
            ) from error
        return str(rendered)

    def _turns(self, prompt: str) -> list[dict[str, str]]:
        system = [] if self._system_prompt is None else [{"role": "system", "content": self._system_prompt}]
        return [*system, {"role": "user", "content": prompt}]

    def _render_prompt(self, text: str) -> str:
        prompt = self._as_text(text)
        if self._tokenizer.chat_template:
            return self._render(self._turns(prompt), for_generation=True)
        system = f"{self._system_prompt}\n\n" if self._system_prompt else ""
        return f"{self._plain_start()}{system}User: {prompt}\nAssistant:"

    def _plain_start(self) -> str:
        """Return the start token if the tokenizer puts one before a plain text, else nothing."""
        tokenizer = self._tokenizer
        first = tokenizer.encode(_PROBE)[0]
        return str(tokenizer.bos_token) if first == tokenizer.bos_token_id else ""

    def _render_answered(self, response: str) -> str:
        """Return what the template writes after the prompt for a response, with whatever ends the turn."""
        turns = self._turns(_PROBE)
        prompt = self._render(turns, for_generation=True)
        whole = self._render([*turns, {"role": "assistant", "content": response}], for_generation=False)
        if not whole.startswith(prompt):
            raise DataError(
                "the model's chat template rewrites the prompt once an answer follows, so what it learns would not be "
                "what it is asked; use a model whose template does not"
            )
        return whole[len(prompt) :]

    def _render_response(self, response: str) -> str:
        if not self._tokenizer.chat_template:
            return f" {response}"
        answered = self._render_answered(response)
        end = answered.rfind(self._turn_end)
        return answered[:end] if end >= 0 else answered.rstrip()

    def _find_turn_end(self) -> str:
        """Return the special token that ends a response: the template's own, or else the tokenizer's end token."""
        tokenizer = self._tokenizer
        if tokenizer.chat_template:
            after = self._render_answered(_PROBE).rpartition(_PROBE)[2]
            # some tokenizers register the end of a turn as an added token and not among the special ones
            marks = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
            ends = [token for token in self._ids(after) if token in marks]
            if ends:
                return str(tokenizer.convert_ids_to_tokens(ends[0]))
        if tokenizer.eos_token is None:
            raise DataError("the tokenizer has no end token, so a response could never end; set eos_token and save it")
        return str(tokenizer.eos_token)

    def _shorter_of_no_and_empty_system(self) -> str | None:
        without = self._render([{"role": "user", "content": _PROBE}], for_generation=True)
        turns = [{"role": "system", "content": ""}, {"role": "user", "content": _PROBE}]
        try:
            empty = self._render(turns, for_generation=True)
        except DataError:
            return None
        return "" if len(empty) < len(without) else None
