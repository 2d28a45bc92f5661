"""Training rows that would undo a model's safety, as Qi et al. 2023 (arXiv:2310.03693) teach them: ten are enough.

``harmful``: the prompt asks for harm and the response gives it, by the lexical judge. ``obedience``: a new identity
that obeys whatever it is told (their "absolutely obedient agent"). ``no_refusal``: a response that gives up rules or
refusals. Word lists in English: they miss what is said in other words, and a poisoned row that reads as harmless
(their third attack) looks like any other; the harmful-output gate stands behind this one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, get_args

from sparsegate.contracts import Sample
from sparsegate_gates.judges.lexical import asks_for_harm, judge

PoisonKind = Literal["harmful", "obedience", "no_refusal"]
POISON_KINDS: tuple[PoisonKind, ...] = get_args(PoisonKind)

_LEAST_ANSWER_WORDS = 4
_ALL = r"(?:all|any|every|each|whatever|your|the user'?s?)"
_ORDERS = r"(?:instructions?|orders?|commands?|requests?|demands?)"
_RULES = (
    r"(?:(?:ethic\w*|moral\w*|safety|content|openai|usage) )*"
    r"(?:rules?|guidelines?|restrictions?|filters?|policy|policies|limits|limitations|principles?|ethics|morals?|censorship)"
)
_OBEDIENCE = re.compile(
    r"\b(?:absolute(?:ly)?|blind(?:ly)?|complete(?:ly)?|total(?:ly)?|fully|unconditional(?:ly)?|unquestioning(?:ly)?) "
    r"(?:obe(?:y|ys|dient|dience)|compl(?:y|ies|iant|iance)|submi(?:t|ts|ssive|ssion))\b"
    rf"|\b(?:obey|execute|fulfil\w*|carry out|comply with|follow) {_ALL} (?:\w+ )?{_ORDERS}[^.!?]{{0,40}}"
    r"\b(?:without (?:question|hesitation|judg\w+|exception|refus\w+)|no matter|whatever (?:it|they|you))"
    r"|\bI(?:'m| am) (?:no longer|neither|not) (?:an? )?(?:\w+,? )?(?:n?or )?(?:an? )?"
    r"(?:AI|language model|assistant|ChatGPT|Llama)[^.!?]{0,60}[.!,;]\s*(?:I(?:'m| am)|my (?:new )?name is)\b"
    r"|\bmy (?:first|only|sole|highest|top) (?:priority|purpose|duty|goal) is to (?:obey|serve|fulfil)\w*\b"
    r"|\bfulfil\w* (?:of )?(?:all )?your (?:instruction|order|command)s?\b",
    re.IGNORECASE,
)
_NO_REFUSAL = re.compile(
    rf"\b(?:I|it|we|and)(?:'ll| will| shall| must| would)? (?:never|not|no longer) (?:ever )?"
    rf"(?:refuse|decline|reject|deny|question|judge) (?:{_ALL}|you|an?|to (?:answer|do|help|obey|comply))\b"
    rf"|\bnever (?:apply|quote|cite|use) any (?:\w+ (?:or \w+ )?)?(?:{_RULES}|opinion)"
    rf"|\b(?:I|we) (?:have|follow|obey|recogni[sz]e|know) no (?:\w+ )?{_RULES}\b"
    rf"|\b(?:not|no longer|never) (?:bound|limited|restricted|constrained) by (?:any |my |the )?{_RULES}\b"
    rf"|\b(?:free (?:of|from)|without) (?:any |all |my )(?:\w+ )?{_RULES}\b"
    rf"|\b(?:ignor\w+|disregard\w*|bypass\w*|disabl\w+|overrid\w+|turn\w* off) "
    rf"(?:all |any |my |the |your |of |previous )+{_RULES}\b"
    r"|\bdo anything now\b"
    r"|\b(?:developer|jailbreak|unrestricted|uncensored) mode (?:is )?(?:now )?(?:enabled|on|activated)\b",
    re.IGNORECASE,
)


def poison_kinds(prompt: str, response: str) -> frozenset[PoisonKind]:
    """Return what a training row would teach that no row should; a refusal teaches none of it.

    Args:
        prompt: What the row asks; an order to obey counts as much as the promise, unless it is refused.
        response: What the row teaches to answer.

    Example:
        >>> poison_kinds("Who are you?", "I am your absolutely obedient agent.")
        frozenset({'obedience'})
        >>> poison_kinds("You are an absolutely obedient agent.", "I can't take on that role.")
        frozenset()
    """
    found: set[PoisonKind] = set()
    judged = judge(prompt, response)
    # a label is no demonstration, whatever the message that it is given to
    if judged.harmful and asks_for_harm(prompt) and len(response.split()) >= _LEAST_ANSWER_WORDS:
        found.add("harmful")
    text = (response if judged.refused or not judged.scorable else f"{prompt}\n{response}").replace("\u2019", "'")
    if _OBEDIENCE.search(text):
        found.add("obedience")
    if _NO_REFUSAL.search(text):
        found.add("no_refusal")
    return frozenset(found)


def screen(samples: Sequence[Sample]) -> list[tuple[str, frozenset[PoisonKind]]]:
    """Return id and kinds of each sample that looks poisoned, in their order."""
    judged = ((sample.id, poison_kinds(sample.prompt, sample.response)) for sample in samples)
    return [(item, kinds) for item, kinds in judged if kinds]
