"""transformers on torch: `generate` with the file's weights, dequantised by transformers itself."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import time
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401  (transformers needs it to read GGUF: without it the peer is absent)
import numpy as np
import torch
import transformers
from transformers.generation.streamers import BaseStreamer

from tkg.bench.engines import Generation
from tkg.runner.checkpoint import open_checkpoint
from tkg.runner.vocabulary import Vocabulary


class _Clock(BaseStreamer):
    """Notes when each token comes; the prompt comes first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


class HuggingFace:
    """A model; text becomes tokens by tkg's vocabulary, so that the prompt is the same one."""

    def __init__(self, model: Any, vocabulary: Vocabulary) -> None:
        self._model = model
        self._vocabulary = vocabulary

    def write(self, prompt: str, tokens: int) -> Generation:
        ids = torch.tensor([self._vocabulary.encode(prompt)])
        clock = _Clock()
        with torch.no_grad():
            out = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                do_sample=False,
                streamer=clock,
            )
        text = self._vocabulary.decode(out[0, ids.shape[1] :].tolist())
        first, *later = clock.times[1:]
        return Generation(text, len(later), later[-1] - first if later else 0.0)

    def losses(self, text: str) -> np.ndarray:
        ids = torch.tensor(self._vocabulary.encode(text))
        with torch.no_grad():
            logits = self._model(ids[None]).logits[0, :-1].double()
        return torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none").numpy()


def load(model: Path, weights: str, threads: int) -> HuggingFace:
    """The model with its weights in that dtype."""
    torch.set_num_threads(threads)
    own = copy.deepcopy(_float32(model)).to(getattr(torch, weights))
    return HuggingFace(own, open_checkpoint(model).vocabulary())


@functools.cache
def _float32(model: Path) -> Any:
    """Loaded once: it takes transformers half a minute."""
    transformers.utils.logging.set_verbosity_error()
    make = transformers.AutoModelForCausalLM.from_pretrained
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        return make(str(model.parent), gguf_file=model.name, dtype=torch.float32)
