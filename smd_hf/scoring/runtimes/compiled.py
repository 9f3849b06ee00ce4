"""Segments compiled by `torch.compile`."""

import torch

from .plan import Run
from .segments import Cut


def compile_cut(cut: Cut) -> tuple[Run, list[Run]]:
    """Compiles a graph by Inductor, and with CUDA graphs on a GPU. ([`Compile`])"""
    whole = _compiled(cut.whole.module)
    return lambda *arguments: whole(*arguments)[-1:], [_compiled(part.module) for part in cut.parts]


def _compiled(module: torch.fx.GraphModule) -> Run:
    device = next(node.meta["val"].device for node in module.graph.nodes if node.op == "placeholder")
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    return torch.compile(module, dynamic=False, fullgraph=True, mode=mode)
