"""No labels from a model that learned from the very photo: it would tell what it remembers, sure of every mistake."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from visionapps.competition.pseudo import named
from visionapps.data.likeness import SIDE, thumbnail
from visionapps.data.seen import Recognised, Seen, content
from visionapps.errors import DataError, WeightsError
from visionapps.inference.inputs import Input
from visionapps.inference.work import Reading
from visionapps.windows import Window

_PIXELS = 2**26  # of a raster, beyond which it is known by its content alone: reading it twice would take too long


class Look(NamedTuple):
    """What tells a photo from others."""

    digest: bytes | None  # of its file; None: it is none of this machine's
    picture: np.ndarray  # (SIDE, SIDE) float32; flat, and so like nothing, where it was not looked at


@dataclass(frozen=True)
class Checked:
    """Photos that may be labelled.

    Attributes:
        inputs: those.
        digests: by name of the photo, hex of its content, empty where it is not known.
        left_out: names of photos that trained the teacher.
    """

    inputs: tuple[Input, ...]
    digests: Mapping[str, str]
    left_out: tuple[str, ...]


def look(image: Input, reading: Reading) -> Look:
    """Content and small picture of a photo or raster.

    Raises:
        DataError: it cannot be read.
    """
    source = replace(reading, gsd=None, area=None).open(image.name)  # as it is, and all of it
    try:
        picture = np.zeros((SIDE, SIDE), np.float32)
        if source.shape[0] * source.shape[1] <= _PIXELS:
            pixels = source.read(Window(0, 0, *source.shape)).values
            picture = thumbnail(np.ascontiguousarray(np.moveaxis(pixels[:3], 0, -1)))
    finally:
        source.close()
    return Look(content(image.path) if image.path is not None else None, picture)


def require_known(teachers: Mapping[Path, Seen | None], *, vouch: bool) -> None:
    """Refuse teachers that do not know what trained them.

    Args:
        teachers: bundles, and what they saw.
        vouch: the user knows that they saw none of the photos.

    Raises:
        WeightsError: which they are.
    """
    unknown = [str(folder) for folder, seen in teachers.items() if seen is None]
    if unknown and not vouch:
        raise WeightsError(
            f"{named(unknown)}: does not know which photos trained it, as bundles of earlier versions do not; train or "
            "export it anew, or vouch with --vouch that it saw none of these"
        )


def require_unseen(
    teachers: Mapping[Path, Seen | None],
    inputs: Sequence[Input],
    reading: Reading,
    *,
    skip: bool = False,
    each: Callable[[Iterable[Input]], Iterable[Input]] = iter,
) -> Checked:
    """Compare photos with those that trained the teachers.

    Args:
        teachers: bundles, and what they saw; one that saw a photo is enough.
        inputs: what is to be labelled.
        reading: how it is opened.
        skip: leave out what was seen, instead of refusing it.
        each: goes through the inputs; shows a progress bar, for instance.

    Raises:
        DataError: photos were seen, or all of them; or one cannot be read.
    """
    looks = [look(image, reading) for image in each(inputs)]
    digests = [found.digest for found in looks]
    pictures = np.stack([found.picture for found in looks])
    reasons: dict[int, str] = {}
    for folder, seen in teachers.items():
        for known in seen.recognise(digests, pictures) if seen is not None else ():
            reasons.setdefault(known.number, _reason(known, folder))
    if reasons and not skip:
        told = named([f"{inputs[number].name} ({reason})" for number, reason in sorted(reasons.items())])
        raise DataError(
            f"pseudo: {len(reasons)} of {len(inputs)} photos trained the teacher, which would only repeat what it "
            f"remembers: {told}; take them out, or leave them out with --skip-seen. Labelled photos get honest labels "
            "out of fold: see `visionapps folds`"
        )
    kept = [number for number in range(len(inputs)) if number not in reasons]
    if not kept:
        raise DataError(f"pseudo: all {len(inputs)} photos trained the teacher; give photos that it never saw")
    return Checked(
        tuple(inputs[number] for number in kept),
        {inputs[number].stem: ((found := digests[number]) and found.hex()) or "" for number in kept},
        tuple(inputs[number].name for number in sorted(reasons)),
    )


def _reason(known: Recognised, folder: Path) -> str:
    if known.likeness is None:
        return f"{folder} trained on this very file"
    return f"{folder} trained on one that looks like it, likeness {known.likeness:.2f}"
