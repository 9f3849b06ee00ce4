import numpy as np

from smd_hf.keyed_random import keyed_generator, keyed_normal

GOLDEN = [1.6231882572174072, 0.3640652000904083, -1.1112401485443115, -1.7739719152450562]


def test_the_stream_is_the_one_that_recorded_runs_were_made_with():
    # A release of numpy that changed the stream would make every recorded child another one: this must then fail loudly.
    values = keyed_normal(4, "noise", 0, 1, 2, "layer.weight")
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, np.array(GOLDEN, dtype=np.float32))


def test_the_same_key_gives_the_same_numbers_and_any_other_key_others():
    keys = [("noise", 0, 0), ("noise", 0, 1), ("noise", 1, 0), ("mask", 0, 0), ("noise", "0", 0), ("noise", 0, 0, 0)]
    draws = [keyed_generator(*key).random(8) for key in keys]
    for i, first in enumerate(draws):
        np.testing.assert_array_equal(first, keyed_generator(*keys[i]).random(8))
        for second in draws[i + 1 :]:
            assert not np.any(first == second)


def test_a_longer_draw_begins_like_a_shorter_one():
    np.testing.assert_array_equal(keyed_normal(10, "noise", 3)[:4], keyed_normal(4, "noise", 3))
