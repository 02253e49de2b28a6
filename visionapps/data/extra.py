"""Further photos to train on beside those of the split: pseudo-labels, or another labelled set of the same classes.

They train in every fold and never validate. So they must be none of the photos that are labelled already, and look like
none that validates.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from visionapps.data.dataset import Action, Dataset, Extra, Pair, Policies, Problem, find_pairs
from visionapps.data.ingest import Ingest, Stored, judged
from visionapps.data.labels import MaskCoding
from visionapps.data.likeness import SIDE, near_duplicates
from visionapps.data.pseudo_table import PseudoTable, find_table
from visionapps.data.seen import content
from visionapps.data.store import Photo, Store, digest, likeness
from visionapps.errors import ConfigError, DataError
from visionapps.windows import Window

_NAMED = 3  # photos in a message


class Opened(NamedTuple):
    """An extra source whose files are matched, and not read yet."""

    extra: Extra
    ingest: Ingest
    pairs: list[Pair]
    table: PseudoTable | None  # None: ordinary masks


def open_extras(dataset: Dataset, coding: MaskCoding, store: Store) -> tuple[list[Opened], list[Problem]]:
    """Match images and masks of every extra source.

    Args:
        dataset: whose extra sources they are.
        coding: of the dataset; ordinary masks are read with it.
        store: where photos are kept.

    Raises:
        ConfigError: the classes of pseudo-labels are not those of the dataset.
        DataError: a folder is missing, empty or half written, or nothing in it matches.
    """
    found, problems = [], []
    for extra in dataset.extra:
        given = extra.masks.replace("{fold}", str(dataset.split.fold))
        masks, table = find_table(Path(given))
        own = replace(dataset, images=extra.images, masks=str(masks), mask_suffix=extra.mask_suffix, extra=())
        used, planes = (coding, None) if table is None else _pseudo_coding(coding, table, masks)
        pairs, more = find_pairs(own)
        if table is not None:
            pairs, more = _listed(pairs, more, table, masks)
        problems += more
        found.append(Opened(replace(extra, masks=given), Ingest(own, used, store, planes), pairs, table))
    return found, problems


def extra_photos(
    opened: Opened, stored: Sequence[Stored], policies: Policies, form: tuple[int, str] | None
) -> tuple[list[Photo], list[Problem]]:
    """The photos of a source that can train.

    Args:
        opened: the source.
        stored: its photos, read.
        policies: of the dataset.
        form: bands and dtype of the dataset's own photos; None: it has none.
    """
    problems = judged(stored, policies)
    photos = []
    for pair, entry in stored:
        if not entry.folder:
            continue
        if form is not None and (entry.bands, entry.dtype) != form:
            text = (
                f"{pair.image}: {entry.bands} bands of {entry.dtype}, but the dataset's own photos have {form[0]} of "
                f"{form[1]}; choose bands that all have, convert the file, or set policies.bands: drop"
            )
            problems.append(Problem("bands", str(pair.image), text, policies.action("bands")))
        elif not sum(entry.class_pixels):
            text = f"{pair.mask}: no pixel is labelled, so it teaches nothing; it is left out"
            problems.append(Problem("unlabelled", str(pair.mask), text, "dropped"))
        else:
            photos.append(
                Photo(
                    pair.name,
                    pair.name,
                    Window(0, 0, entry.height, entry.width),
                    entry.class_pixels,
                    str(pair.image),
                    entry.folder,
                    origin=opened.extra.masks,
                    weight=opened.extra.weight,
                    soft=opened.ingest.planes is not None,
                )
            )
    if stored and not photos and all(problem.action != "error" for problem in problems):
        text = (
            f"{opened.extra.masks}: none of its {len(stored)} photos can train, see the other problems; mend them, or "
            "take this source out of extra"
        )
        problems.append(Problem("empty_extra", opened.extra.masks, text, "error"))
    return photos, problems + _changed(opened, photos)


def apart(
    extras: Sequence[Photo], train: Sequence[Photo], val: Sequence[Photo], policies: Policies
) -> tuple[list[Photo], list[Problem]]:
    """Leave out, or refuse, extra photos that are labelled already, or look like one that validates.

    Args:
        extras: of all sources.
        train: the dataset's own photos that train.
        val: those that validate.
        policies: near_duplicate says what becomes of them; the very photos are never only warned about.

    Returns:
        The extra photos that may train, and the problems.
    """
    if not extras:  # nothing is looked at then: files of a cache from before digests would be read whole
        return [], []
    action = policies.action("near_duplicate")
    strict: Action = "error" if action == "warning" else action
    known = {**_by_content(train), **_by_content(val)}
    validating = {photo.source for photo in val}
    problems, leaving = [], set()
    for photo in extras:
        twin = known.get(_digest(photo))
        if twin is not None:
            role = "validates" if twin.source in validating else "trains with a mask of its own"
            text = (
                f"{photo.source}: is an extra photo of {photo.origin}, but its very content is {twin.source}, which "
                f"{role}; take it out of the extra source, or set policies.near_duplicate: drop"
            )
            problems.append(Problem("near_duplicate", photo.source, text, strict))
            leaving.add(photo.source)
    rest = [photo for photo in extras if photo.source not in leaving]
    left, right = _unique(rest), _unique(val)
    for i, j, alike in near_duplicates(_pictures(left), _pictures(right), np.zeros((len(left), len(right)), bool)):
        text = (
            f"{left[i].source}: is an extra photo of {left[i].origin}, but looks like {Path(right[j].source).name} "
            f"(likeness {alike:.2f}), which validates; take it out of the extra source, or set "
            "policies.near_duplicate to drop or warn"
        )
        problems.append(Problem("near_duplicate", left[i].source, text, action))
        leaving |= {left[i].source} if action == "dropped" else set()
    return [photo for photo in extras if photo.source not in leaving], problems


def require_apart(extras: Sequence[Photo], labelled: Sequence[Photo], policies: Policies) -> None:
    """Refuse extra photos that cannot train in every fold, since each labelled photo validates in one.

    Raises:
        DataError: how many they are, and the first.
    """
    errors = [problem for problem in apart(extras, (), labelled, policies)[1] if problem.action == "error"]
    if errors:
        raise DataError(f"folds: {len(errors)} extra photos cannot train in every fold; {errors[0].message}")


def taught_by_validation(opened: Sequence[Opened], val: Sequence[Photo]) -> list[Problem]:
    """Warnings where the teacher of pseudo-labels was trained on photos that validate: the scores will be too good."""
    taught = [source for source in opened if source.table is not None and source.table.seen is not None]
    if not taught or not val:
        return []
    photos, problems = _unique(val), []
    digests = [bytes.fromhex(_digest(photo)) for photo in photos]
    for source in taught:
        assert source.table is not None
        assert source.table.seen is not None
        known = source.table.seen.recognise(digests, _pictures(photos))
        if known:
            named = _some([photos[found.number].name for found in known])
            text = (
                f"{source.extra.masks}: the teacher of these pseudo-labels was trained on {len(known)} photos that "
                f"validate here ({named}), so the scores will be too good; label with a model that trained on this "
                "run's training photos alone (of folds: masks: pseudo/fold_{fold})"
            )
            problems.append(Problem("taught_by_validation", source.extra.masks, text, "warning"))
    return problems


def _pseudo_coding(coding: MaskCoding, table: PseudoTable, where: Path) -> tuple[MaskCoding, tuple[int, ...] | None]:
    """How pseudo-labels stand for the dataset's labels: classes by name; and for soft ones, the plane of each class."""
    own = coding.labels.names
    if set(own) != set(table.names):
        lacking, strange = sorted(set(own) - set(table.names)), sorted(set(table.names) - set(own))
        said = [f"{what} {', '.join(names)}" for what, names in (("without", lacking), ("with", strange)) if names]
        raise ConfigError(
            f"{where}: these pseudo-labels have other classes than the dataset ({' and '.join(said)}); a pixel of a "
            "missing class would be taught as another: label with a teacher of the same classes"
        )
    places = tuple(table.names.index(name) for name in own)
    if table.soft:
        return coding, places
    ids = tuple((place,) for place in places)
    return MaskCoding(coding.labels, ids, (None,) * len(own), void_ids=(coding.labels.ignore,)), None


def _listed(
    pairs: Sequence[Pair], problems: Sequence[Problem], table: PseudoTable, masks: Path
) -> tuple[list[Pair], list[Problem]]:
    """The pairs that pseudo-labels name; images that were not labelled are no mistake, but are told."""
    kept = [pair for pair in pairs if pair.name in table.photos]
    others = [problem for problem in problems if problem.kind != "missing_mask"]
    lacking = len(problems) - len(others) + len(pairs) - len(kept)
    if lacking:
        text = f"{masks}: labels {len(kept)} of {len(kept) + lacking} images; the others are left out"
        others.append(Problem("missing_mask", str(masks), text, "dropped"))
    return kept, others


def _changed(opened: Opened, photos: Sequence[Photo]) -> list[Problem]:
    """Errors for photos that are not what was labelled."""
    if opened.table is None:
        return []
    changed = [photo for photo in photos if opened.table.photos.get(photo.name) not in ("", _digest(photo))]
    return [
        Problem(
            "changed_image",
            photo.source,
            f"{photo.source}: is not the image that {opened.extra.masks} labels, its content differs; run `visionapps "
            "pseudo` again",
            "error",
        )
        for photo in changed
    ]


def _digest(photo: Photo) -> str:
    return digest(photo.folder) or content(Path(photo.source)).hex()


def _by_content(photos: Sequence[Photo]) -> dict[str, Photo]:
    return {_digest(photo): photo for photo in _unique(photos)}


def _unique(photos: Sequence[Photo]) -> list[Photo]:
    """One item of each file."""
    return list({photo.source: photo for photo in photos}.values())


def _pictures(photos: Sequence[Photo]) -> np.ndarray:
    flat = (0.0,) * SIDE**2
    values = [likeness(photo.folder) or flat for photo in photos]
    return np.array(values, np.float32).reshape(-1, SIDE, SIDE)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
