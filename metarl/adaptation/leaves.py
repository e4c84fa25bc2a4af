"""What a graph of derivatives ends at."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def other_leaves(roots: Iterable[Tensor], known: Iterable[Tensor]) -> list[Tensor]:
    """The leaves that require gradients, that ``roots`` depend on, and that are not among ``known``."""
    seen = {id(value) for value in known}
    found: list[Tensor] = []

    def visit(leaf: Tensor) -> None:
        if id(leaf) not in seen:
            seen.add(id(leaf))
            found.append(leaf)

    nodes = []
    for root in roots:
        if root.grad_fn is not None:
            nodes.append(root.grad_fn)
        elif root.requires_grad:
            visit(root)
    visited = set(nodes)
    while nodes:
        node = nodes.pop()
        leaf = getattr(node, "variable", None)  # Only the nodes that accumulate gradients of leaves have one.
        if isinstance(leaf, Tensor):
            visit(leaf)
        for following, _ in node.next_functions:
            if following is not None and following not in visited:
                visited.add(following)
                nodes.append(following)
    return found
