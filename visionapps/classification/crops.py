"""Where squares are cut out of a photo that is tested: corners, a grid, and all of that mirrored.

Shapes: C bands, H x W pixels of a photo, n squares of s x s pixels.
"""

from typing import Literal

import torch
from torch import Tensor

from visionapps.errors import ConfigError

Crops = Literal[1, 10, 50]  # squares of one photo at one scale, the mirrored ones counted from 10 on
_GRID = 5  # squares along each side, Simonyan and Zisserman 2015, section 4.4


def places(size: tuple[int, int], side: int, crops: Crops) -> tuple[tuple[int, int], ...]:
    """(top, left) of the squares that are cut out of a photo before they are mirrored.

    Args:
        size: (H, W) of the photo in pixels.
        side: s, at most H and W.
        crops: 1: the middle; 10: corners and the middle; 50: a regular grid of 5 x 5 from edge to edge.

    Returns:
        Row by row, 1, 5 or 25 of them; of a photo hardly larger than a square some are the same.

    Raises:
        ConfigError: the photo is smaller than a square, or the number of crops is another.

    Source: Krizhevsky et al. 2012, section 4.1 (10); Simonyan and Zisserman 2015, section 4.4 (50).
    """
    room = (size[0] - side, size[1] - side)
    if side < 1 or min(room) < 0:
        raise ConfigError(
            f"crops: squares of {side} px do not fit into a photo of {size[0]} x {size[1]} px; choose scales of "
            f"{side} px or more"
        )
    if crops == 50:
        downs, rights = (tuple(round(free * i / (_GRID - 1)) for i in range(_GRID)) for free in room)
        return tuple((down, right) for down in downs for right in rights)
    middle = (room[0] // 2, room[1] // 2)
    if crops == 10:
        return (0, 0), (0, room[1]), middle, (room[0], 0), (room[0], room[1])
    if crops == 1:
        return (middle,)
    raise ConfigError(
        f"crops: {crops} is no choice; write 1 (the middle), 10 (corners and middle) or 50 (a 5 x 5 grid)"
    )


def cut(image: Tensor, side: int, crops: Crops, *, flips: bool | None = None) -> Tensor:
    """The squares of one photo.

    Args:
        image: (C, H, W).
        side: s.
        crops: see ``places``.
        flips: mirrored left to right as well; None: where there are 10 or 50.

    Returns:
        (n, C, s, s): as ``places`` has them, then the mirrored ones in the same order.
    """
    squares = torch.stack(
        [
            image[:, top : top + side, left : left + side]
            for top, left in places((image.shape[1], image.shape[2]), side, crops)
        ]
    )
    return torch.cat((squares, squares.flip(3))) if (crops > 1 if flips is None else flips) else squares
