"""Shares of processes: disjoint, together all, and as even as can be."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smd_hf.arguments.choices import Spread, names
from smd_hf.parallel.processes import Processes, segment


def cells_of(shares):
    return [(variant, batch) for share in shares for batch, variants in share.items() for variant in variants]


@given(
    st.sampled_from(names(Spread)),
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(0, 20),
    st.integers(0, 40),
    st.data(),
)
def test_each_variant_that_is_not_known_sees_each_batch_on_one_process(
    mode, processes, variants, start, batches, data
):
    numbers = range(start, start + batches)
    everything = [(variant, batch) for variant in range(variants) for batch in numbers]
    known = data.draw(st.sets(st.sampled_from(everything))) if everything else set()
    shares = [Processes(mode, process, processes).share(variants, numbers, known) for process in range(processes)]
    assert sorted(cells_of(shares)) == sorted(set(everything) - known)


@given(st.integers(1, 9), st.integers(1, 60), st.integers(1, 60))
def test_auto_is_never_slower_than_either(processes, variants, batches):
    def busiest(mode):
        shares = [Processes(mode, process, processes).share(variants, range(batches)) for process in range(processes)]
        return max(len(cells_of([share])) for share in shares)

    assert busiest("auto") == min(busiest("data"), busiest("children"))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 20), st.integers(1, 200), st.data())
def test_segments_are_whole_and_each_that_is_not_known_is_on_one_process(processes, variants, start, batches, data):
    numbers = range(start, start + batches)
    places = sorted({segment(number, numbers) for number in numbers})
    known = data.draw(st.sets(st.sampled_from(places)))
    shares = [
        Processes("auto", process, processes).share(variants, numbers, known, by_segments=True)
        for process in range(processes)
    ]
    left = [number for number in numbers if segment(number, numbers) not in known]
    assert sorted(cells_of(shares)) == [(variant, number) for variant in range(variants) for number in left]
    owners = {segment(number, numbers): process for process, share in enumerate(shares) for number in share}
    assert all(owners[segment(number, numbers)] == process for process, share in enumerate(shares) for number in share)


def test_one_process_does_it_all_without_a_process_group():
    processes = Processes()
    tensor = torch.arange(3)
    processes.broadcast([tensor])
    assert tensor.tolist() == [0, 1, 2]
    assert processes.gather(lambda: 5) == [5] and processes.map(3, lambda number: number**2) == [0, 1, 4]
    with pytest.raises(ZeroDivisionError):
        processes.gather(lambda: 1 / 0)
