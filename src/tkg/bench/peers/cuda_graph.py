"""A rotation of layers on a GPU as one CUDA graph: a run is a replay."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from tkg.bench.check import Answer

LEAST_CALLS = 16
"""Calls of a graph: a replay's own cost of some microseconds is then spread over as many."""

WARM_UP_CALLS = 3
"""Before a capture: kernels are compiled and libraries choose theirs."""


class Graphed:
    """The contestant; see `tkg.bench.peers.Contestant`.

    Args:
        steps: one for each copy of the weights and caches; each runs a call and returns its output.
        answer_of_first: the answer of the first step, from its output.
    """

    def __init__(
        self,
        steps: Sequence[Callable[[], torch.Tensor]],
        answer_of_first: Callable[[torch.Tensor], Answer],
    ) -> None:
        self._answer = answer_of_first
        repeats = -(-LEAST_CALLS // len(steps))
        self.calls_per_run = repeats * len(steps)
        self._graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(side):
            for step in steps:
                for _ in range(WARM_UP_CALLS):
                    step()
        torch.cuda.current_stream().wait_stream(side)
        with torch.no_grad(), torch.cuda.graph(self._graph):
            self._outputs = [step() for _ in range(repeats) for step in steps]

    def settle(self) -> None:
        pass

    def run(self) -> None:
        self._graph.replay()

    def answer(self) -> Answer:
        """What the graph itself computes: each copy is written with the same numbers every time."""
        self._graph.replay()
        torch.cuda.synchronize()
        return self._answer(self._outputs[0])
