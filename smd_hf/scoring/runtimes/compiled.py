"""A graph whose parts are compiled one by one, by `torch.compile`, and run one after the other."""

from collections.abc import Callable, Sequence

import torch
from torch import fx

from .plan import Run
from .segments import Cut, Segment


class Parts:
    """
    A graph that always runs part by part, so that a pass from any place on has the bits of a whole one. ([`Compiled`])

    Args:
        cut ([`Cut`]): the graph.
        compile (`Callable`): compiles the module of a part.
    """

    def __init__(self, cut: Cut, compile: Callable[[fx.GraphModule], Run]):
        self.cut = cut
        self.parts: list[Segment] = [cut.part(number) for number in range(len(cut.places))]
        self.runs = [compile(part.module) for part in self.parts]

    def whole(self, outputs: tuple[str, ...]) -> Run:
        return self._chain(0, self.cut.whole, outputs)

    def suffixes(self, part: int) -> list[Run]:
        return [self._chain(part, self.cut.suffix(part), self.cut.whole.outputs[-1:])]

    def _chain(self, first: int, segment: Segment, outputs: tuple[str, ...]) -> Run:
        names = [*segment.inputs, *(node.name for node in segment.weights)]

        def run(*arguments: torch.Tensor) -> Sequence[torch.Tensor]:
            # The parts of a pass share their memory in CUDA graphs; without the mark, each part would count as a pass.
            torch.compiler.cudagraph_mark_step_begin()
            values = dict(zip(names, arguments))
            for part, compiled in zip(self.parts[first:], self.runs[first:]):
                taken = [*part.inputs, *(node.name for node in part.weights)]
                values |= zip(part.outputs, compiled(*(values[name] for name in taken)))
            return [values[name] for name in outputs]

        return run


def compiled(cut: Cut) -> Parts:
    """Compiles a graph by Inductor, and with CUDA graphs on a GPU."""
    return Parts(cut, _by_inductor)


def _by_inductor(module: fx.GraphModule) -> Run:
    device = next(node.meta["val"].device for node in module.graph.nodes if node.op == "placeholder")
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    return torch.compile(module, dynamic=False, fullgraph=True, mode=mode)
