"""A graph whose parts are compiled one by one, by `torch.compile`, and run one after the other."""

from collections.abc import Callable, Sequence

import torch
from torch import fx

from .cuda_graph import CudaGraphs
from .plan import Run
from .segments import Cut, Segment


class Parts:
    """A graph that always runs part by part, so that a pass from any place on has the bits of a whole one. ([`Compiled`])"""

    rounds_coarsely = False  # and if it did, the same parts run in any pass
    has_threads = False

    def __init__(self, cut: Cut, compile: Callable[[fx.GraphModule], Run]):
        self.cut = cut
        self.parts: list[Segment] = [cut.part(number) for number in range(len(cut.places))]
        self.runs = [compile(part.module) for part in self.parts]
        weights = {node.name for part in self.parts for node in part.weights}
        self.graphs = CudaGraphs(frozenset(weights)) if _device(cut).type == "cuda" else None

    def whole(self, outputs: tuple[str, ...]) -> Run:
        return self._chain(0, self.cut.whole, outputs)

    def suffixes(self, part: int) -> list[Run]:
        return [self._chain(part, self.cut.suffix(part), self.cut.whole.outputs[-1:])]

    def _chain(self, first: int, segment: Segment, outputs: tuple[str, ...]) -> Run:
        names = [*segment.inputs, *(node.name for node in segment.weights)]

        def run(*arguments: torch.Tensor) -> Sequence[torch.Tensor]:
            values = dict(zip(names, arguments))
            for part, compiled in zip(self.parts[first:], self.runs[first:]):
                taken = [*part.inputs, *(node.name for node in part.weights)]
                values |= zip(part.outputs, compiled(*(values[name] for name in taken)))
            return [values[name] for name in outputs]

        return run if self.graphs is None else self.graphs.graph(run, names)


def compiled(cut: Cut) -> Parts:
    """Compiles a graph by Inductor, and with CUDA graphs on a GPU."""
    return Parts(cut, _by_inductor)


def _by_inductor(module: fx.GraphModule) -> Run:
    return torch.compile(module, dynamic=False, fullgraph=True)


def _device(cut: Cut) -> torch.device:
    return cut.exported.logits.meta["val"].device
