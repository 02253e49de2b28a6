"""What a folder of pseudo-labels says about itself: classes, rule, teacher, and which photos it labels.

The folder holds a mask per photo (index PNG or GeoTIFF; soft labels: a GeoTIFF with a plane per class), ``pseudo.json``
and ``seen.npz``, what the teacher was trained on. It appears whole or not at all.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visionapps.data.seen import Seen
from visionapps.errors import DataError
from visionapps.files import whole_output

FORMAT = 1
INDEX, SEEN = "pseudo.json", "seen.npz"
MASKS, PREDICTIONS = "masks", "predictions"  # folders of `visionapps pseudo --out`; the first appears when all is done
TEACHER = "teacher.json"  # in the folder of predictions: whose they are


@dataclass(frozen=True)
class PseudoTable:
    """The index of a folder of pseudo-labels.

    Attributes:
        names: of the teacher's classes, in the order of ids or planes.
        soft: the files hold probabilities.
        photos: by name, the digest of the image (hex; empty: not known) that was labelled.
        seen: what the teachers were trained on; None: they do not know.
        facts: plain data for people: rule, teacher, report.
    """

    names: tuple[str, ...]
    soft: bool
    photos: Mapping[str, str]
    seen: Seen | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write index and list of training photos into a folder.

        Raises:
            OutputError: the disk refuses them.
        """
        data = {
            "format": FORMAT,
            "classes": list(self.names),
            "soft": self.soft,
            **self.facts,
            "photos": dict(sorted(self.photos.items())),
        }
        if self.seen is not None:
            with whole_output(folder / SEEN) as part:
                self.seen.save(part)
        with whole_output(folder / INDEX) as part:
            part.write_text(json.dumps(data, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "PseudoTable":
        """Read the index of a folder.

        Raises:
            DataError: it is missing or damaged, or of another version.
        """
        path = folder / INDEX
        try:
            data = json.loads(path.read_text())
            if data["format"] != FORMAT:
                raise DataError(f"{path}: pseudo-labels of format {data['format']}, but this version reads {FORMAT}")
            table = cls(
                names=tuple(map(str, data.pop("classes"))),
                soft=bool(data.pop("soft")),
                photos={str(name): str(found) for name, found in data.pop("photos").items()},
                seen=Seen.load(folder / SEEN) if (folder / SEEN).is_file() else None,
                facts={key: value for key, value in data.items() if key != "format"},
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: damaged ({error!r}); write the labels anew with `visionapps pseudo`") from error
        return table


def find_table(folder: Path) -> tuple[Path, PseudoTable | None]:
    """The folder that holds the masks, and its index.

    Args:
        folder: what `visionapps pseudo` was given as --out, the folder of masks in it, or one of ordinary masks.

    Returns:
        Where the masks lie; None as index: they are ordinary ones.

    Raises:
        DataError: the index is damaged, or the labels are not finished.
    """
    for place in (folder, folder / MASKS):
        if (place / INDEX).is_file():
            return place, PseudoTable.load(place)
    if (folder / TEACHER).is_file():
        raise DataError(f"{folder}: holds predictions, sure or not; give {folder.parent}, where the labels are")
    if (folder / PREDICTIONS / TEACHER).is_file():
        raise DataError(
            f"{folder}: the pseudo-labels are not finished, only predictions are there; run the same `visionapps "
            "pseudo` again, which goes on where it stopped"
        )
    return folder, None
