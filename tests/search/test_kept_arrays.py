"""Arrays kept between the children of a cut: made once, as far as they fit, and the same numbers either way."""

import numpy as np
import pytest

from smd_hf.search import mutation as mutation_module
from smd_hf.search.kept_arrays import KeptArrays
from smd_hf.search.mutation import Mutation
from smd_hf.search.parameter_space import parameter_space
from smd_hf.search.subspaces import make_decomposition
from tests.tiny import tiny_model


def test_what_fits_is_made_once_and_the_last_one_is_kept_beside_it():
    made = []

    def ask(key, tensor, size):
        return kept.get(key, tensor, lambda: made.append(tensor) or np.full(size, tensor, np.float32))

    kept = KeptArrays(limit=40)
    for _ in range(2):
        assert ask("a", 0, 8).tolist() == [0] * 8
        assert ask("a", 1, 8).tolist() == [1] * 8  # 64 bytes with the first
        assert ask("a", 1, 8).tolist() == [1] * 8
        assert ask("a", 2, 2).tolist() == [2] * 2
        assert ask("a", 3, 8).tolist() == [3] * 8
    assert made == [0, 1, 2, 3, 1, 3]
    ask("b", 0, 8)
    ask("a", 0, 8)
    assert made[6:] == [0, 0]


@pytest.mark.parametrize("decomposition", ["partition", "antirandom", "dense"])
def test_noise_of_a_cut_is_made_once_and_what_is_kept_changes_no_number(monkeypatch, decomposition):
    def children(limit):
        model = tiny_model("vit")
        space = parameter_space(model)
        mutation = Mutation(model, make_decomposition(decomposition, space, 4, seed=3))
        mutation._shared_noise.limit = limit
        return [
            (name, indices, values)
            for child in mutation.children(0, 0.1)
            for name, (indices, values) in mutation.changes(child)
        ], len(space.names)

    calls = []
    original = mutation_module.keyed_normal
    monkeypatch.setattr(mutation_module, "keyed_normal", lambda *args: calls.append(args) or original(*args))
    kept, tensors = children(2**26)
    cuts = {"partition": 1, "antirandom": 2, "dense": 4}[decomposition]
    assert len(calls) == cuts * tensors
    again, _ = children(0)
    assert len(calls) == (cuts + 4) * tensors
    for (name, indices, values), (other, others, same) in zip(kept, again, strict=True):
        assert name == other and values.equal(same)
        assert (indices is None and others is None) or indices.equal(others)
