"""Values that only the device knows, checked there, and told when somebody asks.

A kernel that meets a value that breaks a rule leaves out what it stands for and sets a word in
device memory; it does not stop, and nothing waits for it. `check` reads the words.
"""

from __future__ import annotations

import functools
from typing import Any

from tkg.backends.cuda.environment import interpreting, unavailable
from tkg.contract.errors import Unsupported

RULES = (
    ("pos_ids", "[b, 0] must be -1 (a padded row) or from 0 to S_ctx - S_tkg", "row was padded"),
    ("kv_cache_update_idx", "must name slots in the cache, or 2^32-1", "token was not written"),
    (
        "active_blocks_table",
        "must hold blocks from 0 to num_blocks - 1 wherever a valid position needs one",
        "block was left out of the attention",
    ),
)
"""Argument, rule and what was done instead, in the order of the words."""


@functools.cache
def words(device: str) -> Any:
    """The words of a device: int64 [3], 0 where no rule was broken (`report` in rows.py)."""
    import torch

    return torch.zeros(len(RULES), dtype=torch.int64, device=device)


def check(device: str | None = None) -> None:
    """Wait for the device, and raise what its calls found broken since the last check.

    Args:
        device: torch's name, such as "cuda:0"; `None` or "cuda" for the current one.

    Raises:
        ValueError: a position, slot or block was out of range. What it stood for was left out of
            the calls concerned; the words are cleared.
        Unsupported: the backend cannot run here, and why.
    """
    reason = unavailable()
    if reason is not None:
        raise Unsupported("tkg.backends.cuda.check", {"cuda": [reason]})
    if device is None or device == "cuda":
        device = _current()
    found = words(device).tolist()  # waits for the device's current stream
    words(device).zero_()
    broken = [
        f"{name} {rule}; got {(code & (2**34 - 1)) - 2**32} in row {(code >> 34) - 1}; that {did}"
        for (name, rule, did), code in zip(RULES, found, strict=True)
        if code
    ]
    if broken:
        raise ValueError("attention_block_tkg on " + device + ": " + "\n  ".join(broken))


def _current() -> str:
    import torch

    return "cpu" if interpreting() else f"cuda:{torch.cuda.current_device()}"
