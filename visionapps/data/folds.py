"""Fold plans: which photo validates in which fold, saved as a file that knows the dataset it was made for."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from visionapps.errors import DataError
from visionapps.files import whole_output
from visionapps.windows import Window

FORMAT = 1
_NAMED = 4  # photos or groups listed in a message


class FoldItem(NamedTuple):
    """What a plan has to know of a photo, or of a block of one, whatever its annotations are."""

    name: str
    group: str
    size: tuple[int, int]  # (H, W)
    amounts: tuple[int, ...]  # (K,) labelled pixels, objects, or 1 for the class of the photo
    source: str  # the image file
    window: Window | None = None  # of a block in its photo

    @property
    def digest(self) -> str:
        """Another one when the size or the annotations of the photo change; its path and times do not matter."""
        text = json.dumps([self.name, *map(int, self.size), list(map(int, self.amounts))])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class FoldPlan:
    """Which photo validates in which of k folds.

    Attributes:
        k: folds, numbered from 0.
        seed: of the draw.
        rule: how groups were formed and folds drawn, as plain data: group, block_px, block_m, stratify, buffer;
            join is "alike" where photos that look alike were put together.
        folds: by name of the photo (or block), the fold that it validates in.
        groups: by name, the group that it may not be torn from.
        digests: by name, see FoldItem.digest.
        excluded: by fold, photos that neither train nor validate in it: they lie in the buffer.
        trimmed: by fold, blocks of which only a part trains in it, and the window in their photo that does.
    """

    k: int
    seed: int
    rule: Mapping[str, Any]
    folds: Mapping[str, int]
    groups: Mapping[str, str]
    digests: Mapping[str, str]
    excluded: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    trimmed: Mapping[int, Mapping[str, Window]] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Of the dataset: names, sizes and annotations of all photos."""
        return _hash(sorted(self.digests.values()))

    @property
    def key(self) -> str:
        """Of the whole plan: the dataset and who validates where."""
        return _hash(self.to_dict())

    def names(self, fold: int) -> tuple[str, ...]:
        """The photos that validate in a fold, sorted."""
        return tuple(sorted(name for name, own in self.folds.items() if own == fold))

    def saw(self, fold: int, name: str) -> bool:
        """Whether the model of a fold learned from a photo of the plan; photos in the buffer count as not seen."""
        return self.folds[name] != fold and name not in self.excluded.get(fold, ())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "format": FORMAT,
            "k": self.k,
            "seed": self.seed,
            "rule": dict(self.rule),
            "photos": {
                name: {"fold": self.folds[name], "group": self.groups[name], "digest": self.digests[name]}
                for name in sorted(self.folds)
            },
            "excluded": {str(fold): list(names) for fold, names in sorted(self.excluded.items())},
            "trimmed": {
                str(fold): {n: [w.row, w.col, w.height, w.width] for n, w in sorted(windows.items())}
                for fold, windows in sorted(self.trimmed.items())
            },
        }

    def save(self, path: Path, overwrite: bool = False) -> None:
        """Write the plan as JSON, whole or not at all.

        Raises:
            OutputError: the file exists already, or the disk refuses it.
        """
        with whole_output(path, overwrite) as part:
            part.write_text(json.dumps({**self.to_dict(), "fingerprint": self.fingerprint}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "FoldPlan":
        """Read a plan.

        Raises:
            DataError: missing, damaged, changed by hand so that it contradicts itself, or of a later version.
        """
        try:
            data = json.loads(path.read_text())
        except FileNotFoundError as error:
            raise DataError(
                f"{path}: no such fold plan; make one with `visionapps folds --config RUN.yaml --k 4 --plan {path}`"
            ) from error
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read as a fold plan ({error}); make it anew") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise DataError(f"{path}: is no fold plan of format {FORMAT}; make one with `visionapps folds`")
        try:
            plan = cls._from_dict(data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path}: a part of the fold plan is missing or wrong ({error!r}); make it anew") from error
        outside = [name for name, fold in plan.folds.items() if not 0 <= fold < plan.k]
        if outside:
            raise DataError(f"{path}: {outside[0]} is in fold {plan.folds[outside[0]]}, but there are {plan.k} from 0")
        if data.get("fingerprint") not in (None, plan.fingerprint):
            raise DataError(f"{path}: photos were added or removed by hand; make the plan anew with `visionapps folds`")
        return plan

    @classmethod
    def _from_dict(cls, data: Mapping[str, Any]) -> "FoldPlan":
        photos = data["photos"]
        return cls(
            k=int(data["k"]),
            seed=int(data["seed"]),
            rule=dict(data["rule"]),
            folds={name: int(photo["fold"]) for name, photo in photos.items()},
            groups={name: str(photo["group"]) for name, photo in photos.items()},
            digests={name: str(photo["digest"]) for name, photo in photos.items()},
            excluded={int(fold): tuple(names) for fold, names in data.get("excluded", {}).items()},
            trimmed={
                int(fold): {name: Window(*map(int, window)) for name, window in windows.items()}
                for fold, windows in data.get("trimmed", {}).items()
            },
        )

    def require(self, items: Iterable[FoldItem], where: str = "the dataset") -> None:
        """Refuse photos that are not those of the plan.

        Args:
            items: all photos of the dataset, see fold_items.
            where: the dataset, for messages.

        Raises:
            DataError: some are missing, some are new, or sizes or annotations have changed; which.
        """
        digests = {item.name: item.digest for item in items}
        lacking, new = sorted(self.folds.keys() - digests.keys()), sorted(digests.keys() - self.folds.keys())
        changed = sorted(n for n in digests.keys() & self.digests.keys() if digests[n] != self.digests[n])
        found = "; ".join(
            f"{len(names)} {what} ({_some(names)})"
            for what, names in (
                ("photos of the plan are missing", lacking),
                ("photos are not in the plan", new),
                ("photos have another size or other annotations than when it was made", changed),
            )
            if names
        )
        if found:
            raise DataError(
                f"{where}: the fold plan was made for another dataset of {len(self.folds)} photos: {found}; use the "
                "dataset that it was made for, or make a new plan"
            )

    def validating(self, fold: int, groups: Sequence[str]) -> frozenset[str]:
        """Of the groups of a dataset those that validate in a fold.

        Raises:
            DataError: there is no such fold, a group is not in the plan, or a group lies in two folds.
        """
        if not 0 <= fold < self.k:
            raise DataError(f"split.fold: {fold}, but the plan has {self.k} folds from 0 to {self.k - 1}")
        of: dict[str, set[int]] = {}
        for name, group in self.groups.items():
            of.setdefault(group, set()).add(self.folds[name])
        unknown = sorted(set(groups) - of.keys())
        if unknown:
            raise DataError(
                f"split.plan: {len(unknown)} of {len(groups)} groups are not in the plan ({_some(unknown)}), which "
                f"knows {_some(sorted(of))}; use the dataset and the way of forming groups that the plan was made with"
            )
        torn = sorted(group for group in groups if len(of[group]) > 1)
        if torn:
            raise DataError(f"split.plan: the group {torn[0]} lies in two folds; make the plan anew")
        return frozenset(group for group in groups if of[group] == {fold})


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _hash(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]
