"""The winner's curse: by chance alone, the best of many candidates looks better on the images that chose it."""

import math

from scipy import integrate, special

from ..errors import SMDError


def expected_maximum(k: int, *, floor: bool = False) -> float:
    """
    Expected maximum of `k` independent standard normal variables, `integral of x d(Phi(x)^k)`.

    It is 0.56 for 2, 1.54 for 10 and 2.34 for 64 (David and Nagaraja 2003, Order Statistics, section 3.1, integrated by
    parts).
    """
    if k < 1:
        raise SMDError(f"The expected maximum needs at least one candidate, got {k}.")

    def above(x: float) -> float:
        return -math.expm1(k * special.log_ndtr(x))  # P(maximum > x)

    positive = integrate.quad(above, 0, 12, points=[2, 4, 6])[0]
    return positive if floor else positive - integrate.quad(lambda x: 1 - above(x), -12, 0)[0]


def expected_optimism(
    n_candidates: int,
    n_images: int,
    accuracy: float,
    *,
    discordance: float | None = None,
    keeps_parent: bool = False,
) -> float:
    """
    The apparent gain of the best of `n_candidates` on the images that chose it, if no candidate is truly better.

    On each image, candidate minus parent is -1, 0 or 1. It is not 0 on a share d of the images, and its mean is 0. The
    paired difference of accuracy over n images then has the standard deviation `sqrt(d / n)`, and the best of k candidates
    has the expectation `sqrt(d / n) * E[max of k standard normals]`. This assumes that the differences are independent and
    normal. They share the parent and the images, and a positive correlation makes the true optimism smaller (Slepian 1962),
    so this is an upper bound. Choosing by another score than accuracy makes it smaller, too.

    Args:
        accuracy (`float`): accuracy of the parent, 0 to 1. It is used only if `discordance` is not given.
        discordance (`float`, *optional*): mean share of the images on which exactly one of parent and candidate is right.
            Defaults to `2 a (1 - a)`, the share for unrelated models of accuracy a. For children it is several times too high.
        keeps_parent (`bool`, *optional*, defaults to `False`): the parent stays unless a candidate looks better (elitism).
    """
    d = 2 * accuracy * (1 - accuracy) if discordance is None else discordance
    if n_images < 1 or not 0 <= accuracy <= 1 or not 0 <= d <= 1:
        raise SMDError(
            f"The expected optimism needs at least one image and shares from 0 to 1, but got {n_images} images, "
            f"accuracy {accuracy} and discordance {d}."
        )
    return math.sqrt(d / n_images) * expected_maximum(n_candidates, floor=keeps_parent)
