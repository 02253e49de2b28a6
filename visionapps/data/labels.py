"""Values of mask files and labels: ids, colours and palettes in, one label space out, and back."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from visionapps.data.lookup import HIGHEST_ID, LOWEST_ID, Strangers, code, color_table, id_table, look_up, pack
from visionapps.errors import ConfigError, DataError
from visionapps.structures import MOST_CLASSES, Color, LabelSpace, distinct_colors

# A soft mask: many values that are none, most of them close to (colours) or between (ids) values that are.
_SOFT_VALUES, _SOFT_DISTANCE = 8, 48
_NAN_ID = HIGHEST_ID + 1  # stands for NaN in masks of floats
_NAMED = 5  # values that a message lists

Unknown = Literal["error", "void", "nearest"]


@dataclass(frozen=True)
class ClassDef:
    """One class as a user writes it in YAML.

    Args:
        name: what people read.
        ids: values in mask files; several merge into this class; none: its position in the list of classes.
        color: "#RRGGBB" in colour masks and maps; empty: a default colour, and then no colour mask can name the class.
    """

    name: str
    ids: tuple[int, ...] = ()
    color: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", tuple(self.ids))  # YAML brings lists


@dataclass(frozen=True, eq=False)
class RawMask:
    """A mask as its file holds it.

    Attributes:
        values: (H, W) ids or palette indices, or (H, W, 3) uint8 colours.
        palette: (N, 3) uint8 colours of the indices, if the file has a palette.
        nodata: the value that the file itself declares empty.
        bilevel: one bit per pixel; values are then 0 and 1.
        lossy: the file format changes values (JPEG).
        source: names the file in messages.
    """

    values: np.ndarray
    palette: np.ndarray | None = None
    nodata: float | None = None
    bilevel: bool = False
    lossy: bool = False
    source: str = "mask"


class UnknownValues(DataError):  # noqa: N818  names what was found, as KeyError's kin do
    """A mask holds values that stand for no class and not for void.

    Attributes:
        values: the values, most frequent first; colours as "#RRGGBB".
        counts: pixels of each.
        soft: the values look like the blur of resampling or JPEG between known ones.
    """

    def __init__(self, message: str, values: tuple[int | str, ...], counts: tuple[int, ...], soft: bool) -> None:
        super().__init__(message)
        self.values, self.counts, self.soft = values, counts, soft


@dataclass(frozen=True)
class MaskCoding:
    """How values of mask files stand for labels.

    Attributes:
        labels: the classes, and the label of void pixels.
        ids: per class, the values that mean it.
        file_colors: per class, the colour that means it in colour masks; None: not in colour masks.
        void_ids: values that count nowhere.
        void_colors: colours that count nowhere.
    """

    labels: LabelSpace
    ids: tuple[tuple[int, ...], ...]
    file_colors: tuple[Color | None, ...]
    void_ids: tuple[int, ...] = ()
    void_colors: tuple[Color, ...] = ()

    def __post_init__(self) -> None:
        owners: dict[int, str] = {}
        for name, ids in [*zip(self.labels.names, self.ids, strict=True), ("void", self.void_ids)]:
            for value in ids:
                _claim(owners, value, name, f"id {value}")
                if not LOWEST_ID <= value <= HIGHEST_ID:
                    raise ConfigError(f"classes: id {value} of {name} is outside {LOWEST_ID}..{HIGHEST_ID}")
        painted: dict[Color, str] = {}
        named = [*zip(self.labels.names, self.file_colors, strict=True), *(("void", c) for c in self.void_colors)]
        for name, color in named:
            if color is not None:
                _claim(painted, color, name, f"colour {_hex(color)}")

    @classmethod
    def from_classes(
        cls, classes: Sequence[ClassDef], *, void_ids: Sequence[int] = (), void_colors: Sequence[str] = ()
    ) -> "MaskCoding":
        """The coding of a class table.

        Args:
            classes: in the order of their labels.
            void_ids: values of mask files that count nowhere; a file's own nodata value needs no mention.
            void_colors: "#RRGGBB" of colour masks that count nowhere.

        Raises:
            ConfigError: no classes, a name twice, an id or colour claimed twice, a colour that is none.
        """
        if not classes:
            raise ConfigError("classes: the list is empty; name at least one class")
        if len(classes) > MOST_CLASSES:
            raise ConfigError(f"classes: {len(classes)} are too many for masks of 8 bits; give at most {MOST_CLASSES}")
        given = tuple(_parse_color(c.color, c.name) if c.color else None for c in classes)
        colors = tuple(own or other for own, other in zip(given, distinct_colors(len(classes)), strict=True))
        return cls(
            LabelSpace(tuple(c.name for c in classes), colors),
            ids=tuple(c.ids or (position,) for position, c in enumerate(classes)),
            void_ids=tuple(void_ids),
            file_colors=given,
            void_colors=tuple(_parse_color(c, "void_colors") for c in void_colors),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, complete: equal codings give equal data."""
        return {
            "labels": self.labels.to_dict(),
            "ids": [list(i) for i in self.ids],
            "void_ids": list(self.void_ids),
            "file_colors": [c and list(c) for c in self.file_colors],
            "void_colors": [list(c) for c in self.void_colors],
        }

    def encode(self, mask: RawMask, unknown: Unknown = "error") -> np.ndarray:
        """Labels of a mask.

        A mask of one channel holds ids; its nodata value is void unless a class claims it. Three channels are colours,
        looked up exactly. A palette's colours are used if every colour that occurs is in the class table; else its
        indices are ids. In a one-bit mask, set pixels are 255 if a class has that id, else 1.

        Args:
            mask: what the file holds.
            unknown: what to do with values that mean nothing: raise, make them void, or take the nearest class.

        Returns:
            (H, W) uint8 labels, ``labels.ignore`` where void.

        Raises:
            UnknownValues: unknown is "error" and there are some.
        """
        if mask.values.ndim == 3:
            return self._encode_colors(mask, unknown)
        if mask.palette is not None and self._palette_is_known(mask):
            return self._encode_colors(_painted(mask), unknown)
        return self._encode_ids(mask, unknown)

    def decode(self, labels: np.ndarray) -> np.ndarray:
        """Labels back to the first id of each class, and void to the first void id (or to the ignore label).

        Returns:
            (H, W) uint8 where all ids fit, else uint16 or int16.

        Raises:
            ConfigError: there are void pixels and no value is left for them.
        """
        void = self.void_ids[0] if self.void_ids else self.labels.ignore
        if not self.void_ids and any(void in ids for ids in self.ids) and (labels == self.labels.ignore).any():
            raise ConfigError(f"void_ids: void pixels need an id to be written, and {void} is a class; give one")
        table = np.full(256, void, np.int32)
        table[: len(self.ids)] = [ids[0] for ids in self.ids]
        lowest, highest = table.min(), table.max()
        dtype = np.int16 if lowest < 0 else np.uint8 if highest < 256 else np.uint16
        values: np.ndarray = table.astype(dtype)[labels]
        return values

    def _palette_is_known(self, mask: RawMask) -> bool:
        assert mask.palette is not None
        known = {c for c in (*self.file_colors, *self.void_colors) if c is not None}
        used = np.flatnonzero(np.bincount(mask.values.ravel(), minlength=1))
        return bool(known) and all(
            i < len(mask.palette) and tuple(mask.palette[i].tolist()) in known for i in used.tolist()
        )

    def _encode_ids(self, mask: RawMask, unknown: Unknown) -> np.ndarray:
        owners = np.array([(value, k) for k, ids in enumerate(self.ids) for value in ids])
        claimed = set(owners[:, 0].tolist())
        values, void = mask.values, set(self.void_ids)
        if mask.bilevel and 255 in claimed:
            values = values.astype(np.uint8) * 255
        if values.dtype.kind == "f":  # a mask of floats says with NaN that it knows nothing there
            values = np.where(np.isnan(values), _NAN_ID, values)
            void.add(_NAN_ID)
        if mask.nodata is not None and float(mask.nodata).is_integer() and mask.nodata not in claimed:
            void.add(int(mask.nodata))
        labels = look_up(values, id_table(self.ids, self.labels.ignore), self.labels.ignore)
        strange = Strangers.find(values, labels == self.labels.ignore, void)
        if strange is None or unknown == "void":
            return labels
        if unknown == "nearest":
            gaps = np.abs(strange.values[:, None] - owners[None, :, 0].astype(np.float64))
            return strange.settle(labels, owners[gaps.argmin(1), 1])
        between = strange.counts[(strange.values > min(claimed)) & (strange.values < max(claimed))].sum()
        text = [int(v) if float(v).is_integer() else f"{v:g}" for v in strange.values.tolist()]
        soft = len(text) >= _SOFT_VALUES and between >= 0.9 * strange.counts.sum()
        raise _unknown(mask, text, strange.counts, bool(soft), f"ids {_ranges(sorted(claimed | set(self.void_ids)))}")

    def _encode_colors(self, mask: RawMask, unknown: Unknown) -> np.ndarray:
        owners = np.array([k for k, color in enumerate(self.file_colors) if color is not None])
        if not len(owners):
            raise DataError(
                f"{mask.source}: the mask has colours, but no class has one; give each class a `color: '#RRGGBB'`"
            )
        packed = pack(mask.values)
        labels: np.ndarray = color_table(self.file_colors, self.labels.ignore)[packed]
        strange = Strangers.find(packed, labels == self.labels.ignore, {code(c) for c in self.void_colors})
        if strange is None or unknown == "void":
            return labels
        rgb = np.stack([strange.values >> 16, strange.values >> 8 & 255, strange.values & 255], 1)
        squared = np.stack([((rgb - np.array(c)) ** 2).sum(1) for c in self.file_colors if c is not None], 1)
        if unknown == "nearest":
            return strange.settle(labels, owners[squared.argmin(1)])
        close = strange.counts[squared.min(1) <= _SOFT_DISTANCE**2].sum()
        text = [_hex(color) for color in rgb.tolist()]
        soft = len(text) >= _SOFT_VALUES and close >= 0.5 * strange.counts.sum()
        raise _unknown(mask, text, strange.counts, bool(soft), f"{len(owners)} class colours")


def _unknown(mask: RawMask, found: Sequence[int | str], counts: np.ndarray, soft: bool, expected: str) -> UnknownValues:
    order = np.argsort(-counts, kind="stable")
    values, pixels = tuple(found[i] for i in order), tuple(int(counts[i]) for i in order)
    listed = ", ".join(f"{v} ({n} px)" for v, n in zip(values[:_NAMED], pixels[:_NAMED], strict=True))
    more = f" and {len(values) - _NAMED} more" if len(values) > _NAMED else ""
    share = sum(pixels) / (mask.values.shape[0] * mask.values.shape[1])
    part = f"{share:.2%}" if share >= 1e-4 else "under 0.01%"
    if soft:
        what = f"the mask looks resampled or JPEG-compressed: {len(values)} values between or near the classes'"
        advice = "save masks without loss (PNG, nearest neighbour), or set policies.soft_mask to fix or drop"
    else:
        what = f"the mask has values that stand for no class: {listed}{more}"
        advice = "add them to the ids of a class or to void_ids, or set policies.unknown_values to fix or drop"
        if isinstance(values[0], str):
            advice = advice.replace("the ids of a class or to void_ids", "the classes' colors or to void_colors")
        if values == (255,):
            advice = f"if the mask is binary, give the foreground class `ids: [255]`; else {advice}"
    text = f"{mask.source}: {what}, {part} of its pixels; expected {expected}; {advice}"
    return UnknownValues(text, values, pixels, soft)


def _claim(owners: dict[Any, str], key: object, name: str, what: str) -> None:
    if key in owners:
        raise ConfigError(f"classes: {what} is claimed by {owners[key]} and {name}; one value means one thing")
    owners[key] = name


def _parse_color(text: str, where: str) -> Color:
    if not re.fullmatch(r"#[0-9A-Fa-f]{6}", text):
        raise ConfigError(f"classes: {text!r} of {where} is no colour; write it as '#RRGGBB', in quotes")
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def _hex(color: Sequence[int]) -> str:
    return "#{:02X}{:02X}{:02X}".format(*color)


def _ranges(values: Sequence[int]) -> str:
    """1, 2, 3, 7 as "1..3, 7"."""
    parts: list[list[int]] = []
    for value in values:
        if parts and value == parts[-1][-1] + 1:
            parts[-1][1:] = [value]
        else:
            parts.append([value])
    return ", ".join("..".join(map(str, part)) for part in parts)


def _painted(mask: RawMask) -> RawMask:
    assert mask.palette is not None
    return RawMask(mask.palette[mask.values], source=mask.source)
