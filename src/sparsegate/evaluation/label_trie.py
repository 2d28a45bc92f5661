"""Labels as a trie of token prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise, takewhile

Tokens = tuple[int, ...]


@dataclass
class Node:
    """A prefix shared by labels: ``path`` leads here from the prompt, ``start`` is where the last branch was."""

    path: Tokens
    start: int
    label: int | None = None
    children: list[Node] = field(default_factory=list)

    @property
    def inputs(self) -> Tokens:
        """Tokens to read after the prompt; a whole label's last token is only predicted, never read."""
        return self.path if self.label is None else self.path[:-1]


def check_labels(labels: Sequence[Tokens]) -> None:
    """Check that labels can be told apart.

    Raises:
        ValueError: If labels are empty, equal, or one is the beginning of another.
    """
    ordered = sorted(labels)
    if not labels or not all(labels):
        raise ValueError("labels must not be empty")
    for first, second in pairwise(ordered):
        if second[: len(first)] == first:
            raise ValueError(
                "labels must differ, and none may be the beginning of another; end each with the end token"
            )


def build_trie(labels: Sequence[tuple[int, Tokens]], path: Tokens = ()) -> Node:
    """Build the trie below a common prefix ``path``; chains without a branch are one node."""
    start = len(path)
    rests = [tokens[start:] for _, tokens in labels]
    common = len(list(takewhile(lambda column: len(set(column)) == 1, zip(*rests, strict=False))))
    if path == ():
        common = 0  # the root is the prompt itself
    path = labels[0][1][: start + common]
    node = Node(path, start)
    groups: dict[int, list[tuple[int, Tokens]]] = {}
    for index, tokens in labels:
        if len(tokens) == len(path):
            node.label = index
        else:
            groups.setdefault(tokens[len(path)], []).append((index, tokens))
    for token, group in groups.items():
        child = build_trie(group, (*path, token))
        child.start = len(path)
        node.children.append(child)
    return node
