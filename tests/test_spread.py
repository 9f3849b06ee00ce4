"""Shares of processes: disjoint, together all, and as even as can be."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smd_hf.errors import SMDError
from smd_hf.evaluation.spread import MODES, Spread


@given(st.sampled_from(MODES), st.integers(1, 9), st.integers(1, 40), st.integers(0, 20), st.integers(0, 40))
def test_each_variant_sees_each_batch_on_one_process(mode, processes, variants, start, batches):
    numbers = range(start, start + batches)
    cells = []
    for process in range(processes):
        mine, my_batches = Spread(mode, process, processes).share(variants, numbers)
        cells += [(variant, batch) for variant in mine for batch in my_batches]
    assert sorted(cells) == [(variant, batch) for variant in range(variants) for batch in numbers]


@given(st.integers(1, 9), st.integers(1, 60), st.integers(1, 60))
def test_auto_is_never_slower_than_either(processes, variants, batches):
    def busiest(mode):
        shares = [Spread(mode, process, processes).share(variants, range(batches)) for process in range(processes)]
        return max(len(mine) * len(my_batches) for mine, my_batches in shares)

    assert busiest("auto") == min(busiest("data"), busiest("children"))


def test_one_process_does_it_all_without_a_process_group():
    spread = Spread()
    tensor = torch.arange(3)
    spread.copy_from_first([tensor])
    assert tensor.tolist() == [0, 1, 2]
    assert spread.together(lambda: 5) == [5] and spread.each(3, lambda number: number**2) == [0, 1, 4]
    with pytest.raises(ZeroDivisionError):
        spread.together(lambda: 1 / 0)


def test_an_unknown_mode_is_refused():
    with pytest.raises(SMDError, match="data, children"):
        Spread("rows")
