"""A pass as one CUDA graph: the CPU launches it at once, where it would launch each of its hundreds of kernels."""

from collections.abc import Sequence

import torch

from .plan import Run

WARM_UP = 2
"""Passes before a graph is recorded: kernels are compiled and libraries choose their own."""


class CudaGraphs:
    """
    What the graphs of a model share: the memory that they read, and the memory that they write.

    Graphs are replayed one after the other, and what one returns is copied before the next, so they share their memory.

    Args:
        weights (collection of `str`): names of the arguments that are weights. One that is the same tensor as in the last
            pass is not copied again.
    """

    def __init__(self, weights: frozenset[str]):
        self.weights = weights
        self.pool = torch.cuda.graph_pool_handle()
        self._read: dict[str, torch.Tensor] = {}
        self._given: dict[str, torch.Tensor] = {}

    def put(self, names: Sequence[str], arguments: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Copies arguments to where graphs read them. Returns these tensors."""
        for name, tensor in zip(names, arguments):
            if name not in self._read:
                with torch.inference_mode(False), torch.no_grad():
                    self._read[name] = torch.empty_like(tensor, memory_format=torch.contiguous_format)
            elif name in self.weights and self._given.get(name) is tensor:
                continue
            self._read[name].copy_(tensor)
            if name in self.weights:
                self._given[name] = tensor
        return [self._read[name] for name in names]

    def graph(self, run: Run, names: Sequence[str]) -> Run:
        """

        Returns:
            `Callable`: the same pass. Its first call records it.
        """
        recorded: list[tuple[torch.cuda.CUDAGraph, Sequence[torch.Tensor]]] = []

        def replay(*arguments: torch.Tensor) -> Sequence[torch.Tensor]:
            taken = self.put(names, arguments)
            if not recorded:
                recorded.append(self._record(run, taken))
            [(graph, outputs)] = recorded
            graph.replay()
            return outputs

        return replay

    def _record(self, run: Run, taken: list[torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, Sequence[torch.Tensor]]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                run(*taken)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            outputs = run(*taken)
        return graph, outputs
