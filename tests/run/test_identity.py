import pytest

from smd_hf import SMDError
from smd_hf.run.identity import FORMAT, check_same

IDENTITY = {"format": FORMAT, "arguments": {"seed": 1}, "data": {"train_dataset": "a"}, "parent": "b"}


def test_a_run_goes_on_without_a_removed_argument_that_had_no_effect(tmp_path):
    absent = {"warm_start": False, "refit_head": False, "unlabeled": False, "fitness_sampling": "balanced"}
    arguments = {"seed": 1, "runtime": "eager"} | absent
    now = IDENTITY | {"arguments": arguments}
    check_same(now | {"arguments": now["arguments"] | {"solve_head": False}}, now, tmp_path)


def test_a_run_with_a_removed_argument_is_refused(tmp_path):
    before = IDENTITY | {"arguments": {"seed": 1, "solve_head": True}}
    with pytest.raises(SMDError, match="solve_head was true, which this version of smd_hf does not have"):
        check_same(before, IDENTITY, tmp_path)
