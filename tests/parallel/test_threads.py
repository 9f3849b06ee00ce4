"""PyTorch's threads, while an engine with threads of its own runs the passes."""

import pytest
import torch

from smd_hf.parallel.threads import num_threads, one_thread

pytestmark = pytest.mark.usefixtures("two_threads")


def test_one_thread_within_the_context_and_as_many_as_before_after_it():
    with one_thread():
        assert (torch.get_num_threads(), num_threads()) == (1, 2)
        with one_thread():
            assert (torch.get_num_threads(), num_threads()) == (1, 2)
        assert (torch.get_num_threads(), num_threads()) == (1, 2)
    assert (torch.get_num_threads(), num_threads()) == (2, 2)


def test_all_threads_where_one_is_not_wanted():
    with one_thread(wanted=False):
        assert (torch.get_num_threads(), num_threads()) == (2, 2)


def test_an_error_gives_the_threads_back():
    with pytest.raises(KeyboardInterrupt), one_thread():
        raise KeyboardInterrupt
    assert (torch.get_num_threads(), num_threads()) == (2, 2)
