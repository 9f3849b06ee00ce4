"""
The blocks of a model in depth, found without knowing its architecture.

A *layer* is a module with at most one weight of two or more dimensions (a convolution and its norm); a *block* has several
(a residual block, a transformer layer). Lists of modules outside of any list are opened, and modules that mostly hold
blocks (stages). A list of layers inside a block is not opened, so a residual block stays whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import nn

from ..errors import SMDError
from .block_calls import LISTS, holds_blocks
from .quantized import scales_of


@dataclass(frozen=True)
class Block:
    """
    A unit of a model's depth.

    Args:
        name (`str`): the module's path in the model; `""` where no module but the model itself has parameters.
        parameter_names (`tuple[str, ...]`): names in memory of the block's parameters, as [`named_tensors`] gives them: scales
            of quantised ones, too. Never empty.
    """

    name: str
    parameter_names: tuple[str, ...]


def find_blocks(model: nn.Module) -> list[Block]:
    """
    Divides a model into blocks, each parameter in exactly one; a tied parameter in the first that has it.

    Parameters of an opened container itself (a class token, positions) belong to the next block in it: on their own, a few
    numbers would be a block as costly to score as the whole model.

    Returns:
        `list[Block]`: in the order in which the model registers them, which for nearly every architecture is that of their
        use: the elements of lists (stages opened into their blocks) and, in between, what lies outside of them: stem,
        embeddings, final norm, head.
    """
    names = {id(parameter): name for name, parameter in reversed(list(model.named_parameters()))}

    def taken(parameter: nn.Parameter) -> list[str]:
        """Its name and those of its scales, the first time."""
        name = names.pop(id(parameter), None)
        return [] if name is None else [name, *(scale for scale, _ in scales_of(name, parameter))]

    blocks, owned = [], []
    for name, module, whole in _units(model, "", False):
        found = module.parameters() if whole else module.parameters(recurse=False)
        parameters = [each for parameter in found for each in taken(parameter)]
        if not whole:
            owned += parameters
        elif parameters:
            blocks.append(Block(name, (*owned, *parameters)))
            owned = []
    if owned:
        # Nothing with parameters comes after them.
        last = blocks.pop() if blocks else Block("", ())
        blocks.append(Block(last.name, (*last.parameter_names, *owned)))
    return blocks


def _units(module: nn.Module, name: str, inside: bool) -> Iterator[tuple[str, nn.Module, bool]]:
    """Name, module and whether with all that is below it, of each unit; `inside`: the module lies in a list's element."""
    yield name, module, False
    inside = inside or isinstance(module, LISTS)
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        if any(holds_blocks(below) or (isinstance(below, LISTS) and not inside) for below in child.modules()):
            yield from _units(child, path, inside)
        else:
            yield path, child, True


def contiguous_runs(sizes: Sequence[int], n: int) -> list[range]:
    """
    Divides ordered units into contiguous runs with about the same number of coordinates.

    Of all ways to divide, the one with the least sum of squares of the runs' sizes (the least variance), by dynamic
    programming in O(n B^2).

    Args:
        sizes (`Sequence[int]`): the number of coordinates of each of the B units, in order.

    Returns:
        `list[range]`: the positions of the units in each run: none empty, in order, together all.
    """
    count = len(sizes)
    if not 1 <= n <= count:
        raise SMDError(f"{count} blocks were to be cut into {n} runs; ask for at least 1 and at most {count} runs.")
    ends = np.concatenate([[0], np.cumsum(np.asarray(sizes, dtype=np.float64))])
    # cost[i, j]: of one run over the units i ... j - 1.
    cost = np.square(ends[None, :] - ends[:, None])
    cost[np.tril_indices(count + 1)] = np.inf
    best, starts = cost[0], []
    for _ in range(n - 1):
        total = best[:, None] + cost
        starts.append(total.argmin(axis=0))
        best = total.min(axis=0)
    cuts = [count]
    for start in reversed(starts):
        cuts.append(int(start[cuts[-1]]))
    cuts.append(0)
    return [range(start, end) for end, start in pairwise(cuts)][::-1]
