"""Tuned rules where maps are drawn: bands of probabilities come in, bands of labels go out.

Rules that look at components or at the whole photo need all of it at once; thresholds alone do not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from visionapps.competition.postprocess import PostProcess
from visionapps.competition.predicting import to_levels
from visionapps.errors import ConfigError, DataError
from visionapps.inference.products import Band, Extra, Products
from visionapps.inference.sources import INVALID
from visionapps.structures import LabelSpace

KEY = "postprocess"  # of the rules in a file, and in a bundle's model.yaml
_MOST = 8 * 2**30  # bytes of planes of a photo that are held at once


@dataclass(frozen=True)
class Finishing:
    """Obeys rules; see visionapps.inference.finish.Finish.

    Attributes:
        process: the rules.
        labels: whose K classes they are for.
        drawn: what is wanted beside labels; the confidence is that of the label that is drawn.
    """

    process: PostProcess
    labels: LabelSpace
    drawn: Products = field(default_factory=Products)

    @property
    def whole(self) -> bool:
        """Whether labels depend on more than their own pixel."""
        return self.process.needs_photo

    @cached_property
    def computed(self) -> Products:
        """With the probabilities, on which rules decide."""
        return Products((*self.drawn.extras, "probabilities"))

    def identity(self) -> Mapping[str, Any]:
        """The rules as plain data."""
        return self.process.to_dict(self.labels.names)

    def require_room(self, name: str, shape: tuple[int, int]) -> None:
        """Refuse a raster that would not fit into memory.

        Raises:
            DataError: its planes would take more than 8 GiB.
        """
        needed = self.computed.count(len(self.labels)) * shape[0] * shape[1]
        if self.whole and needed > _MOST:
            raise DataError(
                f"{name}: {shape[0]} x {shape[1]} px of {len(self.labels)} classes are {needed / 2**30:.1f} GiB of "
                f"scores, but rules on components and holes need the whole picture in at most {_MOST / 2**30:.0f} GiB; "
                "cut it into photos, use rules with thresholds only, or leave the rules out with --postprocess none"
            )

    def __call__(self, band: Band) -> Band:
        """Labels by the rules, and what is drawn beside them."""
        single = len(self.computed.extras) - 1
        planes, found = band.planes, band.planes[1 + single :]
        valid = planes[0] != INVALID
        labels = self.process.apply(to_levels(found, planes[0]), valid)  # as they were tuned on
        extras: dict[Extra, np.ndarray] = {
            name: planes[1 + i][None] for i, name in enumerate(self.computed.extras[:-1])
        }
        if "confidence" in extras:
            own = np.take_along_axis(found, np.where(valid, labels, 0)[None], 0)
            extras["confidence"] = np.where(valid, own, np.uint8(INVALID))
        extras["probabilities"] = found
        return Band(band.window, np.concatenate([labels[None], *(extras[name] for name in self.drawn.extras)]))


def read_rules(path: Path, labels: LabelSpace) -> PostProcess:
    """The rules of a file that `visionapps tune` wrote, or a person.

    Raises:
        ConfigError: it cannot be read, or its rules are not for these classes.
    """
    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as rules ({str(error).splitlines()[0]})") from error
    if not isinstance(data, dict) or KEY not in data:
        raise ConfigError(f"{path}: has no key {KEY!r}; `visionapps tune` writes such a file")
    try:
        return PostProcess.from_dict(data[KEY], labels.names)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def rules_of(stored: Mapping[str, Any] | None, labels: LabelSpace, where: Path) -> PostProcess | None:
    """The rules of a bundle; None where it has none.

    Raises:
        ConfigError: they are not for its classes.
    """
    if stored is None:
        return None
    try:
        return PostProcess.from_dict(stored, labels.names)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}; draw without rules by --postprocess none") from error
