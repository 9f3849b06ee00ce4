"""
Keyed random numbers: every draw has a key, and the same key gives the same numbers everywhere.

A counter-based generator (Philox, Salmon et al. 2011, in numpy) is keyed by a hash of the draw's purpose and key. No state
carries over from one draw to the next. So a child has the same bytes on any device, rank and world size, and in any order
of evaluation.
"""

import hashlib
import json

import numpy as np


def keyed_generator(purpose: str, *key: int | str) -> np.random.Generator:
    """
    A random generator for one keyed draw.

    Args:
        purpose (`str`): the use of the numbers, for example `"noise"`. Draws for different purposes are independent.
    """
    digest = hashlib.blake2b(json.dumps(["smd_hf", purpose, *key]).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def keyed_normal(count: int, purpose: str, *key: int | str) -> np.ndarray:
    """Standard normal numbers for one keyed draw, float32, of shape `(count,)`."""
    return keyed_generator(purpose, *key).standard_normal(count, dtype=np.float32)
