"""Splitting a data set at random into what is trained on and what is tested on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def split_groups(
    groups: Sequence[Sequence[int]], names: Sequence[str], train_share: float, seed: int
) -> tuple[list[int], list[int]]:
    """Split images so that those of a group, which show the same, land on the same side.

    The order is that of ``sha256("seed/name")``, not a random generator's, so that the same names split alike under
    every version of numpy.

    Args:
        groups: the indices of the images, those of one group together.
        names: the name of each image.
        train_share: the share of images to train on, in (0, 1).
        seed: another seed gives another split.

    Returns:
        The indices to train on and those to test on, in order. The first are none if no group fits.
    """
    ordered = sorted(groups, key=lambda group: min(seeded(seed, names[i]) for i in group))
    size = min(max(round(train_share * len(names)), 1), len(names) - 1)
    train: list[int] = []
    test: list[int] = []
    for group in ordered:
        # A group too large for what is left of the training side is passed over: single images then fill it up.
        (train if len(train) + len(group) <= size else test).extend(group)
    return sorted(train), sorted(test)


def seeded(seed: int, name: str) -> bytes:
    """What images are ordered by: another seed gives another order of the same names."""
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()


__all__ = ["seeded", "split_groups"]
