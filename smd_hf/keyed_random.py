"""
Keyed random numbers: every draw has a name, and the same name gives the same numbers anywhere.

A counter-based generator (Philox, Salmon et al. 2011, in numpy) is keyed by a hash of what the draw is for. Nothing is
streamed from one draw to the next, so a child is the same bytes on any device, rank and world size and in any order of
evaluation.
"""

import hashlib
import json

import numpy as np


def keyed_generator(purpose: str, *key: int | str) -> np.random.Generator:
    """
    A random generator for one named draw.

    Args:
        purpose (`str`): what the numbers are for, such as `"noise"`; draws for different purposes are independent.
        key (`int` or `str`): what tells this draw from others of its purpose: seed, generation, child, parameter name.

    Returns:
        `numpy.random.Generator`: at the start of its own stream of 2^128 numbers.
    """
    digest = hashlib.blake2b(json.dumps(["smd_hf", purpose, *key]).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def keyed_normal(count: int, purpose: str, *key: int | str) -> np.ndarray:
    """`count` standard normal numbers in float32, of shape `(count,)`, for one named draw."""
    return keyed_generator(purpose, *key).standard_normal(count, dtype=np.float32)
