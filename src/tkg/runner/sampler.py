"""From logits to the next token."""

from __future__ import annotations

import math

import numpy as np


class Sampler:
    """Chooses tokens: the likeliest one, or at random.

    Args:
        temperature: divides the logits; 0 always takes the likeliest token.
        top_p: only the likeliest tokens, whose probabilities add up to at least this, take part.
        seed: of the random numbers; `None` gives new ones every time.

    Raises:
        ValueError: `temperature` is negative or not finite, or `top_p` is not in (0, 1].
    """

    def __init__(
        self, temperature: float = 0.0, top_p: float = 1.0, seed: int | None = None
    ) -> None:
        if not (math.isfinite(temperature) and temperature >= 0):
            raise ValueError(f"temperature must be finite and at least 0; got {temperature}")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1; got {top_p}")
        self.temperature = temperature
        self.top_p = top_p
        self._random = np.random.default_rng(seed)

    def __call__(self, logits: np.ndarray) -> int:
        """A token from its logits `[vocabulary]`."""
        if self.temperature == 0:
            return int(np.argmax(logits))
        weights = np.exp((logits - logits.max()) / self.temperature, dtype=np.float64)
        order = np.argsort(-weights, kind="stable")
        cumulated = np.cumsum(weights[order])
        kept = int(np.searchsorted(cumulated, self.top_p * cumulated[-1])) + 1
        drawn = self._random.random() * cumulated[:kept][-1]
        return int(order[np.searchsorted(cumulated[:kept], drawn, side="right")])
