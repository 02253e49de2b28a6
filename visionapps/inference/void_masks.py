"""Masks of 0 and 255 read where 255 means void: they would become a valid result without a pixel of foreground."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionapps.errors import DataError
from visionapps.structures import IGNORE

_ROWS = 256  # of a mask that are looked at before the next: most masks tell within the first what they are


@dataclass
class VoidCheck:
    """Counts masks that hold nothing but background and the ignore label.

    One such mask means little: an image without data and without objects has it. Where no mask holds another label,
    they are those of one class as most tools write them, 0 and 255. An image without objects is empty in them, too, so
    that a folder of them need not hold 255 everywhere.

    Attributes:
        foreground: the labels that are written.
        masks: how many were looked at.
        void_only: those that hold the ignore label and beside it at most background.
    """

    foreground: Collection[int]
    masks: int = 0
    void_only: int = 0
    _partly: int = 0  # those of them that hold background, too
    _told: bool = False  # whether a mask holds any other label

    def __post_init__(self) -> None:
        self._blank = [label for label in (0, IGNORE) if label not in self.foreground]

    @classmethod
    def of_files(cls, written: Iterable[int], foreground: int | None) -> "VoidCheck":
        """That of a dialect of files: in index masks (no foreground) 0 is a label like any other, and tells nothing."""
        return cls([label for label in written if label or foreground is not None])

    def add(self, mask: NDArray[Any]) -> None:
        """Look at one (H, W) label map."""
        self.masks += 1
        if not self._is_blank(mask):
            self._told = True
        elif IGNORE in self._blank and (void := mask == IGNORE).any():
            self.void_only += 1
            self._partly += not void.all()

    def _is_blank(self, mask: NDArray[Any]) -> bool:
        blocks = (mask[row : row + _ROWS] for row in range(0, len(mask), _ROWS))
        return all(bool(np.isin(block, self._blank).all()) for block in blocks)

    def refuse(self, where: Path, *, allow_empty: bool | None = None) -> None:
        """Raise DataError if 255 was meant as foreground in all likelihood.

        Args:
            where: the masks come from or go to, for the message.
            allow_empty: whether it is known that 255 is void, so that no image may hold an object; None: the caller
                has no such option.
        """
        if self._told or allow_empty or not self.void_only:
            return
        advice = f"if {IGNORE} means foreground here, give --labels {IGNORE}"
        if allow_empty is not None:
            advice += "; if it is void, and no image has an object, --allow-empty"
        only = f"hold only background and {IGNORE}, which means void"
        if self.void_only == self.masks:
            raise DataError(f"{where}: all {self.void_only} masks {only}; {advice}")
        if self._partly:
            raise DataError(
                f"{where}: no mask holds foreground: {self.void_only} of {self.masks} {only}, the others background "
                f"alone; {advice}"
            )
