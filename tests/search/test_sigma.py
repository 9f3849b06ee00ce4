import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smd_hf import SMDError
from smd_hf.search.sigma import calibrate_sigma


@given(st.floats(1e-4, 50), st.floats(0.01, 0.5))
def test_the_sigma_that_flips_the_target_is_found(scale, target):
    found = calibrate_sigma(lambda sigma: 1 - np.exp(-sigma / scale), target, start=0.1)
    assert found.flipped == pytest.approx(target, rel=0.11)
    # Flips within 11 % of one half are at a sigma within 17 %.
    assert found.sigma == pytest.approx(-scale * np.log1p(-target), rel=0.17)
    assert (found.sigma, found.flipped) in found.curve
    assert list(found.curve) == sorted(found.curve)


def test_the_nearest_is_taken_where_flips_come_in_steps():
    found = calibrate_sigma(lambda sigma: float(sigma > 1) * 0.5, target=0.03, start=0.1)
    assert found.flipped == 0.0 and len(found.curve) == 16
    assert "sigma was calibrated to" in str(found) and "%" in str(found)


def test_a_model_that_nothing_moves_is_an_error():
    with pytest.raises(SMDError, match="No sigma up to"):
        calibrate_sigma(lambda sigma: 0.0, target=0.03, start=0.1)
