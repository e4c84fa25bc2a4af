"""What all ranks must agree on, and the sentences for when they do not."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from metarl.distributed.group import Group
from metarl.errors import ConfigError, WorkerError

_LONGEST = 120
"""Characters of a value that is shown."""


def require_same(group: Group, values: Mapping[str, Any]) -> None:
    """Refuse ranks that were started with different settings, code or tasks; compared by digest.

    Args:
        group: the ranks.
        values: what must be the same, JSON-able, by what it is called; mappings are compared entry by entry.

    Raises:
        ConfigError: on every rank, naming the first thing that differs and what it is on the ranks.
    """
    if group.world_size == 1:
        return
    texts = {name: json.dumps(value, sort_keys=True, default=str) for name, value in _leaves(values)}
    theirs = group.gather({name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()})
    names = dict.fromkeys(name for digests in theirs for name in digests)
    different = [name for name in names if len({digests.get(name) for digests in theirs}) > 1]
    if not different:
        return
    shown = group.gather(_differing(texts.get(different[0], "nothing")))
    lines = "; ".join(f"{text} on rank {rank}" for rank, text in enumerate(shown))
    raise ConfigError(
        f"the ranks of one run must have the same {different[0]}, which is {lines}. Start all of them from one "
        "command, with one installation of metarl."
    )


def _leaves(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What is no mapping, by its names with dots between them."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", leaf) for inner, leaf in _leaves(value))
        else:
            yield name, value


def _differing(text: str) -> str:
    return (
        text
        if len(text) <= _LONGEST
        else f"{text[:_LONGEST]}... (sha256 {hashlib.sha256(text.encode()).hexdigest()[:8]})"
    )


def require_same_state(group: Group, tensors: Mapping[str, Tensor], when: str) -> None:
    """Refuse to go on once a rank's tensors differ from those of the others in any bit.

    Args:
        group: the ranks.
        tensors: parameters, buffers and what an optimiser keeps, by name.
        when: for the message, e.g. ``"after iteration 5"``.

    Raises:
        WorkerError: on every rank, naming those that drifted and the first tensor that differs. Where there is a
            majority it is right, else rank 0 is.
    """
    if group.world_size == 1:
        return
    own = {name: _digest(tensor) for name, tensor in tensors.items()}
    whole = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()
    digests = group.gather(whole)
    if len({*digests}) == 1:
        return
    counts = Counter(digests)
    right = max(counts, key=lambda digest: (counts[digest], digest == digests[0]))
    drifted = [rank for rank, digest in enumerate(digests) if digest != right]
    parts = group.gather(own)
    reference = parts[digests.index(right)]
    names = [name for name in reference if parts[drifted[0]].get(name) != reference[name]]
    who = f"rank {drifted[0]} has" if len(drifted) == 1 else f"ranks {', '.join(map(str, drifted))} have"
    raise WorkerError(
        f"{who} drifted from the other ranks: {when} {names[0] if names else 'the list of tensors'} differs. Training "
        "stopped, since their updates are no longer those of one agent. Do the machines have the same processors and "
        "the same versions, and does the agent draw from its own generator alone?"
    )


def _digest(tensor: Tensor) -> str:
    data = tensor.detach().reshape(-1).contiguous().cpu().view(torch.uint8).numpy()
    return hashlib.sha256(data.data).hexdigest()
