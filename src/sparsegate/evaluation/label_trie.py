"""Labels as a trie of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

Tokens = tuple[int, ...]


@dataclass(eq=False)
class Node:
    """A token after the prompt, at ``depth`` from 1; the root, at 0, is the prompt. A ``label`` ends at each leaf."""

    token: int
    depth: int
    label: int | None = None
    children: list[Node] = field(default_factory=list)

    def num_read(self) -> int:
        """Return how many tokens below this one may have to be read; a label's last is only predicted."""
        return sum(1 + child.num_read() for child in self.children if child.label is None)


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


def build_trie(labels: Sequence[Tokens]) -> Node:
    """Build the trie of labels that :func:`check_labels` has let pass; return its root."""
    root = Node(token=-1, depth=0)
    nodes: dict[Tokens, Node] = {(): root}
    for index, label in enumerate(labels):
        for depth in range(1, len(label) + 1):
            path = label[:depth]
            if path not in nodes:
                nodes[path] = Node(label[depth - 1], depth)
                nodes[path[:-1]].children.append(nodes[path])
        nodes[label].label = index
    return root
