"""From what files call a class to labels."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from visionapps.data.object_dataset import ObjectClass
from visionapps.data.object_table import Category
from visionapps.errors import ConfigError
from visionapps.structures import LabelSpace

UNKNOWN, LEFT_OUT, ANY, BACKGROUND = -1, -2, -3, -4  # instead of a label; ANY: ignored whatever class is found there
_BACKGROUND_NAMES = ("background", "__background__", "_background_", "bg")


@dataclass(frozen=True, eq=False)
class Matching:
    """What the categories of files mean.

    Attributes:
        labels: the label space.
        category_ids: (K,) the number that files give to each class, for writing results; its position plus 1 where
            files have no numbers.
        label: (C,) int64 in [0, K), or one of the constants of this module.
        ignored: (C,) bool, objects are difficult.
        alone: (C,) bool, they ought to be difficult ones of every class, but have a class of their own.
    """

    labels: LabelSpace
    category_ids: tuple[int, ...]
    label: np.ndarray
    ignored: np.ndarray
    alone: np.ndarray


def match_classes(
    categories: Sequence[Category],
    classes: Sequence[ObjectClass | str] | None,
    leave_out: Sequence[str | int],
    ignore: Sequence[str | int],
    source: str,
    *,
    spread: bool = True,
) -> Matching:
    """Give every category of the files a label.

    Args:
        categories: (C,) of the files.
        classes: the class table; None: every category is a class.
        leave_out: names or numbers whose objects are left out.
        ignore: names or numbers whose objects are difficult ones of every class.
        source: names the annotations in messages.
        spread: False: objects of ``ignore`` are difficult ones of classes of their own, which stand behind the others.

    Raises:
        ConfigError: the table claims a category twice, names one that does not exist, or is empty.
    """
    label = np.full(len(categories), UNKNOWN, np.int64)
    ignored = np.zeros(len(categories), bool)
    for keys, meaning in ((leave_out, LEFT_OUT), (ignore, ANY)):
        for key in keys:
            places = _named(categories, key)
            if not places:
                raise ConfigError(_nothing_named(categories, key, source))
            label[places] = meaning
    alone = np.zeros(len(categories), bool) if spread else label == ANY
    label[alone] = UNKNOWN
    for i, category in enumerate(categories):
        if label[i] == UNKNOWN and category.name is not None and category.name.lower() in _BACKGROUND_NAMES:
            label[i] = BACKGROUND
    if classes is None:
        table = _all_of(categories, label)
    else:
        table = [ObjectClass(entry) if isinstance(entry, str) else entry for entry in classes]
        table += _all_of(categories, np.where(alone, label, LEFT_OUT))
    if not table:
        why = "no class is left" if categories else "the files name no class, for they hold no object"
        raise ConfigError(f"{source}: {why}; write classes, or mend leave_out and ignore")
    ids = _claim(table, categories, label, ignored)
    labels = LabelSpace.named([entry.name for entry in table])
    return Matching(labels, _numbered(ids), label, ignored | (label == ANY) | alone, alone)


def _claim(
    table: Sequence[ObjectClass], categories: Sequence[Category], label: np.ndarray, ignored: np.ndarray
) -> list[int | None]:
    """Give categories the labels of the entries that mean them, in place; returns the number of each entry."""
    ids: list[int | None] = []
    for k, entry in enumerate(table):
        if entry.name.lower() in _BACKGROUND_NAMES:
            raise ConfigError(f"classes: {entry.name} is no class of a detector; leave it out of the table")
        own = _meant(categories, entry, k)
        for places, difficult in ((own, False), ([i for key in entry.ignore for i in _named(categories, key)], True)):
            for i in places:
                if label[i] >= 0 or label[i] in (LEFT_OUT, ANY):
                    taken = table[int(label[i])].name if label[i] >= 0 else "leave_out or ignore"
                    raise ConfigError(
                        f"classes: {entry.name} claims {categories[i]} of the files, but so does {taken}; keep one"
                    )
                label[i], ignored[i] = k, difficult
        known = categories[own[0]].id if own else None
        ids.append(known if known is not None else (entry.ids[0] if entry.ids else None))
    return ids


def _numbered(ids: Sequence[int | None]) -> tuple[int, ...]:
    """(K,) numbers of the classes: those of the files, and free ones for classes that the files do not number."""
    known = [i for i in ids if i is not None]
    if len(set(known)) < len(known):
        return tuple(range(1, len(ids) + 1))
    free = (i for i in range(1, len(ids) + len(known) + 1) if i not in known)
    return tuple(next(free) if i is None else i for i in ids)


def _all_of(categories: Sequence[Category], label: np.ndarray) -> list[ObjectClass]:
    """A table with every category that is not spoken for; those without number by name.

    Where others have names, a number without one is a mistake and no class.
    """
    free = [c for c, meaning in zip(categories, label.tolist(), strict=True) if meaning == UNKNOWN]
    if any(c.name is not None for c in categories):
        free = [c for c in free if c.name is not None]
    if any(c.id is None for c in free):
        free = sorted(free, key=str)
    table: dict[str, ObjectClass] = {}
    for c in free:
        name = str(c) if c.name is not None else f"class {c.id}"
        before = table.get(name, ObjectClass(name))
        named = (*before.names, c.name) if c.name is not None else before.names
        table[name] = ObjectClass(
            name, before.ids if c.name is not None or c.id is None else (c.id,), tuple(set(named))
        )
    return list(table.values())


def _meant(categories: Sequence[Category], entry: ObjectClass, position: int) -> list[int]:
    """Places of the categories that an entry of the table stands for; of one that occurs nowhere: none."""
    if not entry.ids and not entry.names:
        if all(c.name is None for c in categories):  # YOLO without names
            return [i for i, c in enumerate(categories) if c.id == position]
        return _named(categories, entry.name)
    keys: tuple[int | str, ...] = (*entry.ids, *entry.names)
    return sorted({i for key in keys for i in _named(categories, key)})


def _named(categories: Sequence[Category], key: str | int) -> list[int]:
    return [i for i, c in enumerate(categories) if (c.id == key if isinstance(key, int) else c.name == key)]


def _nothing_named(categories: Sequence[Category], key: str | int, source: str) -> str:
    names = [str(c) for c in categories]
    close = difflib.get_close_matches(str(key), names, 3) or names[:8]
    return f"{source}: no category is called {key!r}; there are {', '.join(close)}"
