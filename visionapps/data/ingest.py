"""One photo from its files into the store, with everything that is wrong with it."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from visionapps.data.dataset import Dataset, Pair, Policies, Problem
from visionapps.data.images import Header, MissingBand, read_header, read_image, read_mask, resize_image, resize_labels
from visionapps.data.labels import MaskCoding, RawMask, UnknownValues
from visionapps.data.likeness import thumbnail
from visionapps.data.seen import content
from visionapps.data.soft import largest, read_soft, resize_soft
from visionapps.data.store import Entry, Finding, Store, photo_key
from visionapps.errors import DataError

_CONTENT_POLICIES = ("size_mismatch", "unknown_values", "soft_mask")  # they change what is stored


class Stored(NamedTuple):
    """A photo that went into a store, or could not."""

    pair: Pair
    entry: Entry


def judged(stored: Iterable[Stored], policies: Policies) -> list[Problem]:
    """What the policies make of the findings."""
    problems = []
    for pair, entry in stored:
        actions = [policies.action(f.kind) for f in entry.findings]
        if not entry.folder and not {"error", "dropped"} & set(actions):
            actions = ["error"] * len(actions)  # the policy was to mend it, but that cannot be done
        problems += [
            Problem(f.kind, str(pair.image if f.kind == "bands" else pair.mask or pair.image), f.message, action)
            for f, action in zip(entry.findings, actions, strict=True)
        ]
    return problems


@dataclass(frozen=True)
class Ingest:
    """Puts photos of a dataset into a store, or finds them there.

    Attributes:
        dataset: what was asked for.
        coding: its class table.
        store: where decoded photos are kept.
        planes: of soft labels: the plane of their files that belongs to each of the K classes; None: masks hold ids.
    """

    dataset: Dataset
    coding: MaskCoding
    store: Store
    planes: tuple[int, ...] | None = None

    def key(self, pair: Pair) -> str:
        """Under which a photo is stored."""
        data, policies = self.dataset, self.dataset.policies
        settings: dict[str, Any] = {
            "coding": self.coding.to_dict(),
            "bands": data.bands,
            "resize": data.resize,
            "policies": [getattr(policies, kind) for kind in _CONTENT_POLICIES],
        }
        if self.planes is not None:
            settings["planes"] = self.planes
        return photo_key(pair.image, pair.mask, settings)

    def bytes_of(self, header: Header) -> int:
        """What a photo will take in the store."""
        height, width = self.dataset.resize or (header.height, header.width)
        return height * width * (header.bands * np.dtype(header.dtype).itemsize + 1 + len(self.planes or ()))

    def put(self, pair: Pair) -> Entry:
        """The entry of a photo, decoded now if it was not before.

        Returns:
            An entry with its problems; one without a folder cannot be used. Files that cannot be read are not
            remembered: the cause may be the disk and not the file.

        Raises:
            OutputError: the cache cannot be written.
        """
        key = self.key(pair)
        known = self.store.find(key)
        if known is not None:
            return known
        try:
            header = read_header(pair.image, self.dataset.bands)
            image = read_image(pair.image, self.dataset.bands)
            soft = None if self.planes is None or pair.mask is None else read_soft(pair.mask, self.planes)
            mask = read_mask(pair.mask) if pair.mask is not None and soft is None else None
            known_by = content(pair.image).hex()
        except DataError as error:
            kind = "bands" if isinstance(error, MissingBand) else "corrupt"
            return Entry("", findings=(Finding(kind, str(error)),))
        labels, findings = self._labels(mask, pair, header) if soft is None else _of_planes(soft, pair, header)
        alike = tuple(np.round(thumbnail(image), 2).ravel().tolist())
        blank = Entry("", likeness=alike, findings=tuple(findings), digest=known_by)
        if labels is None:
            return self.store.put(key, blank)
        size = self.dataset.resize or image.shape[:2]
        image, labels = resize_image(image, size), resize_labels(labels, size)
        if soft is not None:
            soft = resize_soft(soft, size)
            labels = largest(soft)
        entry = Entry(
            folder="",
            height=size[0],
            width=size[1],
            bands=image.shape[2],
            dtype=str(image.dtype),
            class_pixels=(0,) * len(self.coding.labels),
            likeness=blank.likeness,
            findings=blank.findings,
            digest=blank.digest,
        )
        return self.store.put(key, entry, image, labels, soft=soft)

    def _labels(self, mask: RawMask | None, pair: Pair, header: Header) -> tuple[np.ndarray | None, list[Finding]]:
        """Labels of the image's size, or None if a policy refuses the mask; and what was wrong."""
        size = (header.height, header.width)
        findings = []
        if mask is None:
            return np.full(size, self.coding.labels.ignore, np.uint8), []
        if header.orientation not in (0, 1):
            findings.append(Finding("rotated", _rotated(pair, header.orientation)))
        claimed = [n for n, ids in zip(self.coding.labels.names, self.coding.ids, strict=True) if mask.nodata in ids]
        if claimed:
            text = f"{pair.mask}: the file declares {mask.nodata:g} as nodata, but the table gives it to {claimed[0]}"
            findings.append(Finding("nodata_class", f"{text}; it counts as {claimed[0]}"))
        labels = self._encode(mask, findings.append)
        if mask.values.shape[:2] != size:
            policy = self.dataset.policies.size_mismatch
            findings.append(Finding("size_mismatch", _mismatch(pair, header, mask.values.shape[:2])))
            labels = resize_labels(labels, size) if labels is not None and policy == "fix" else None
        return labels, findings

    def _encode(self, mask: RawMask, report: Callable[[Finding], None]) -> np.ndarray | None:
        try:
            labels = self.coding.encode(mask)
        except UnknownValues as error:
            kind = "soft_mask" if error.soft or mask.lossy else "unknown_values"
            report(Finding(kind, str(error)))
            if getattr(self.dataset.policies, kind) != "fix":
                return None
            return self.coding.encode(mask, "nearest" if kind == "soft_mask" else "void")
        except DataError as error:  # a colour mask, but no class has a colour
            report(Finding("unknown_values", str(error)))
            return None
        if mask.lossy and self._blurs(mask):
            text = f"{mask.source}: the mask is a JPEG, which moves values to those of neighbouring classes"
            report(Finding("soft_mask", f"{text}; save masks as PNG, or set policies.soft_mask to fix or drop"))
            return labels if self.dataset.policies.soft_mask == "fix" else None
        return labels

    def _blurs(self, mask: RawMask) -> bool:
        """Whether lossy compression can have turned one id into another without leaving a trace."""
        ids = sorted(value for ids in self.coding.ids for value in ids)
        gaps = [b - a for a, b in itertools.pairwise(ids)]
        return mask.values.ndim == 2 and bool(mask.values.min() != mask.values.max()) and min(gaps, default=99) < 32


def _of_planes(soft: np.ndarray, pair: Pair, header: Header) -> tuple[np.ndarray | None, list[Finding]]:
    """Most probable labels of soft ones, or None where they are not of the image's size; and what was wrong."""
    if soft.shape[1:] == (header.height, header.width):
        return largest(soft), []
    return None, [Finding("size_mismatch", _mismatch(pair, header, soft.shape[1:]))]


def _mismatch(pair: Pair, header: Header, mask: tuple[int, ...]) -> str:
    text = f"{pair.mask}: the mask has {mask[0]} x {mask[1]} px (H x W), but its image {header.height} x {header.width}"
    if (mask[1], mask[0]) == (header.height, header.width):
        return f"{text}: one of them is turned; {_rotated(pair, header.orientation)}"
    return f"{text}; replace one of them, or set policies.size_mismatch to fix (resizes the mask) or drop"


def _rotated(pair: Pair, orientation: int) -> str:
    return (
        f"{pair.image}: EXIF says that viewers turn it (orientation {orientation}), but pixels are read as stored; see "
        "that the mask was drawn on the stored ones, else turn the image for good and save it without the tag"
    )
