"""A dataset as a person describes it in YAML: two folders, a class table, a split, and what to do about problems."""

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, NamedTuple, get_args, get_type_hints

from visionapps.data.labels import ClassDef, MaskCoding
from visionapps.errors import ConfigError, DataError
from visionapps.files import list_files

CELL = 64  # side in pixels of the cells in which labels are counted; blocks of a split lie on this grid

Action = Literal["error", "fixed", "dropped", "warning"]
_OUTCOME: dict[str, Action] = {"error": "error", "fix": "fixed", "drop": "dropped", "warn": "warning"}


@dataclass(frozen=True)
class Policies:
    """What to do about each kind of problem: refuse to train, mend it, leave the photo out, or only say so.

    Args:
        missing_mask: an image without a mask.
        missing_image: a mask without an image.
        corrupt: a file that cannot be decoded to its end.
        size_mismatch: image and mask differ in size; fix: resize the mask, nearest neighbour.
        unknown_values: a mask has values that stand for no class; fix: these pixels become void.
        soft_mask: a mask was resampled or compressed with loss; fix: the nearest class takes each value.
        bands: a photo differs from the others in bands or data type.
        unlabelled: every pixel of a mask is void.
        near_duplicate: a photo of the training split looks like one of the validation split (turned or mirrored too);
            drop: out of the training split.
        unused_class: a class occurs nowhere.
        one_sided_class: a class occurs in one split only.
    """

    missing_mask: Literal["error", "drop"] = "error"
    missing_image: Literal["error", "drop"] = "error"
    corrupt: Literal["error", "drop"] = "error"
    size_mismatch: Literal["error", "fix", "drop"] = "error"
    unknown_values: Literal["error", "fix", "drop"] = "error"
    soft_mask: Literal["error", "fix", "drop"] = "error"
    bands: Literal["error", "drop"] = "error"
    unlabelled: Literal["error", "drop", "warn"] = "warn"
    near_duplicate: Literal["error", "drop", "warn"] = "error"
    unused_class: Literal["error", "warn"] = "warn"
    one_sided_class: Literal["error", "warn"] = "warn"

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):
            value, allowed = getattr(self, field.name), get_args(hints[field.name])
            if value not in allowed:
                raise ConfigError(f"policies.{field.name}: {value!r} is no choice; write one of {', '.join(allowed)}")

    def action(self, kind: str) -> Action:
        """What becomes of a problem of this kind; kinds without a policy are warnings."""
        return _OUTCOME[getattr(self, kind, "warn")]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a dataset, and what was done about it.

    Attributes:
        kind: a field of Policies, or same_name, split, rotated, nodata_class, changed_image, empty_extra,
            taught_by_validation.
        file: where; empty when it concerns the dataset as a whole.
        message: what, expected, and what to do, in one line that names the file.
        action: error: training is refused; fixed, dropped: by the policy; warning: nothing.
    """

    kind: str
    file: str
    message: str
    action: Action


class Findings:
    """What every examination of a dataset says about its problems.

    Attributes:
        problems: all of them, whatever became of them.
        source: what the dataset is called in messages.
    """

    problems: tuple[Problem, ...]
    source: str

    @property
    def counts(self) -> dict[tuple[str, str], int]:
        """How many problems there are per (kind, action)."""
        return dict(Counter((p.kind, p.action) for p in self.problems))

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that forbid training."""
        return tuple(p for p in self.problems if p.action == "error")

    def raise_on_errors(self) -> None:
        """Refuse a dataset that has problems whose policy is "error".

        Raises:
            DataError: how many problems of which kinds, and the first of them.
        """
        errors = self.errors
        if errors:
            kinds = Counter(p.kind for p in errors)
            listed = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
            raise DataError(
                f"{self.source}: the dataset has {len(errors)} problem{'s'[: len(errors) > 1]} ({listed}); the first: "
                f"{errors[0].message}; run `visionapps check` with this config for the list"
            )


@dataclass(frozen=True)
class Split:
    """How photos are divided into training and validation. A group never stands on both sides.

    Without group, block_px and block_m every photo is a group of its own.

    Args:
        group: regular expression searched in a photo's name (no suffix); its first group, or all that matched, names
            the group: "^tile\\d+", "^([^_]+)_".
        val_fraction: share of the pixels that validate, 0..1; met as well as whole groups allow.
        val_groups: names of the groups that validate, instead of a draw.
        block_px: cut each photo into blocks of this side, a multiple of 64; each block is a group.
        block_m: georeferenced photos: one group per square of the map with this side in metres.
        seed: of the draw.
        plan: file of a fold plan that says which photos validate, instead of a draw; groups must be formed as the plan
            has them. See ``visionapps folds``.
        fold: of the plan that validates, from 0; the other folds train.
    """

    group: str | None = None
    val_fraction: float = 0.2
    val_groups: tuple[str, ...] = ()
    block_px: int | None = None
    block_m: float | None = None
    seed: int = 0
    plan: str | None = None
    fold: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "val_groups", tuple(self.val_groups))
        if self.plan is not None and self.val_groups:
            raise ConfigError("split: plan and val_groups are two ways to say what validates; keep one")
        if self.fold < 0:
            raise ConfigError(f"split.fold: {self.fold} must be at least 0")
        ways = [name for name in ("group", "block_px", "block_m") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise ConfigError(f"split: {' and '.join(ways)} are two ways to form groups; keep one")
        if not 0 <= self.val_fraction <= 1:
            raise ConfigError(f"split.val_fraction: {self.val_fraction} is not in 0..1")
        if self.block_px is not None and (self.block_px < CELL or self.block_px % CELL):
            raise ConfigError(f"split.block_px: {self.block_px} is not a multiple of {CELL}")
        if self.block_m is not None and self.block_m <= 0:
            raise ConfigError(f"split.block_m: {self.block_m} metres must be positive")


@dataclass(frozen=True)
class Extra:
    """Further photos that only train: a folder of `visionapps pseudo`, or masks that the dataset's classes read.

    Args:
        images: folder of photos or rasters.
        masks: folder of their masks or pseudo-labels; ``{fold}`` in it stands for the number of split.fold.
        weight: how often crops are drawn from these photos, relative to their area; the dataset's own have 1.
        mask_suffix: what mask names have more than image names.
    """

    images: str
    masks: str
    weight: float = 1.0
    mask_suffix: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ConfigError(
                f"extra: weight {self.weight} of {self.masks} must be positive; leave a source out that shall not count"
            )


@dataclass(frozen=True)
class Dataset:
    """Photos and their masks.

    Args:
        images: folder of photos or rasters.
        masks: folder of masks with the same names (suffixes may differ); None: no masks, every pixel is void.
        classes: the class table, in the order of labels; a plain name is a class with its position as id.
        void_ids: values of mask files that count nowhere; a file's own nodata value needs no mention.
        void_colors: "#RRGGBB" of colour masks that count nowhere.
        bands: bands to read, by 1-based number or name; None: all but alpha.
        mask_suffix: what mask names have more than image names: "_mask".
        resize: (H, W) that photos and masks are resized to once, before any crop.
        split: how to divide training and validation.
        policies: what to do about problems.
        cache: folder of decoded photos; None: visionapps/photos in the user's cache folder.
        cache_gb: most that the cache may hold.
        extra: further photos that only train.
    """

    images: str
    masks: str | None
    classes: tuple[ClassDef | str, ...]
    void_ids: tuple[int, ...] = ()
    void_colors: tuple[str, ...] = ()
    bands: tuple[int | str, ...] | None = None
    mask_suffix: str = ""
    resize: tuple[int, int] | None = None
    split: Split = Split()
    policies: Policies = Policies()
    cache: str | None = None
    cache_gb: float = 32.0
    extra: tuple[Extra, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "extra", tuple(self.extra or ()))  # YAML makes null of a key without a value
        for name in ("classes", "void_ids", "void_colors", "bands", "resize"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        if self.resize is not None and (len(self.resize) != 2 or min(self.resize) < 1):
            raise ConfigError(f"resize: {self.resize} must be a height and a width of at least 1 pixel")
        twice = [name for name, count in Counter(extra.masks for extra in self.extra).items() if count > 1]
        if twice:
            raise ConfigError(f"extra: {twice[0]} is a source twice; give it once, with a larger weight")
        if self.cache_gb <= 0:
            raise ConfigError(f"cache_gb: {self.cache_gb} must be positive")

    def coding(self) -> MaskCoding:
        """How mask values stand for labels.

        Raises:
            ConfigError: the class table contradicts itself.
        """
        table = [ClassDef(c) if isinstance(c, str) else c for c in self.classes]
        return MaskCoding.from_classes(table, void_ids=self.void_ids, void_colors=self.void_colors)

    def cache_folder(self) -> Path:
        """Where decoded photos are kept."""
        if self.cache is not None:
            return Path(self.cache).expanduser()
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(home).expanduser() / "visionapps" / "photos"


class Pair(NamedTuple):
    """A photo and its mask on disk."""

    name: str  # stem of the image
    image: Path
    mask: Path | None


def find_pairs(dataset: Dataset) -> tuple[list[Pair], list[Problem]]:
    """Match images and masks by name.

    Returns:
        The pairs by name, and what found no partner or is there twice.

    Raises:
        DataError: a folder is missing or empty, or nothing matches at all.
    """
    images, problems = _by_name(list_files(Path(dataset.images)), "")
    if dataset.masks is None:
        return [Pair(name, path, None) for name, path in images.items()], problems
    if dataset.mask_suffix and Path(dataset.images).resolve() == Path(dataset.masks).resolve():
        images = {name: path for name, path in images.items() if not name.endswith(dataset.mask_suffix)}
    masks, more = _by_name(list_files(Path(dataset.masks)), dataset.mask_suffix)
    problems += more
    pairs = [Pair(name, path, masks[name]) for name, path in images.items() if name in masks]
    if not pairs:
        raise DataError(_nothing_matches(dataset, list(images), list(masks)))
    wanted = f"{dataset.masks}/NAME{dataset.mask_suffix}.*"
    for name in sorted(images.keys() - masks.keys()):
        text = f"{images[name]}: no mask {wanted.replace('NAME', name)}; add it, or set policies.missing_mask: drop"
        problems.append(Problem("missing_mask", str(images[name]), text, dataset.policies.action("missing_mask")))
    for name in sorted(masks.keys() - images.keys()):
        text = f"{masks[name]}: no image {dataset.images}/{name}.*; add it, or set policies.missing_image: drop"
        problems.append(Problem("missing_image", str(masks[name]), text, dataset.policies.action("missing_image")))
    return pairs, problems


def _by_name(paths: Sequence[Path], suffix: str) -> tuple[dict[str, Path], list[Problem]]:
    """Files by their stem without the suffix; files whose stem lacks it are not ours."""
    found: dict[str, Path] = {}
    problems = []
    for path in paths:
        if not path.stem.endswith(suffix):
            continue
        name = path.stem.removesuffix(suffix)
        if name in found:
            text = f"{path}: {found[name].name} has the same name, so the pair is ambiguous; remove or rename one"
            problems.append(Problem("same_name", str(path), text, "error"))
        found.setdefault(name, path)
    return found, problems


def _nothing_matches(dataset: Dataset, images: list[str], masks: list[str]) -> str:
    longer = [(i, m) for i in images for m in masks if m != i and m.startswith(i)] if len(images) < 10_000 else []
    if longer:
        image, mask = min(longer, key=lambda pair: len(pair[1]) - len(pair[0]))
        return f"{dataset.masks}: no mask has the name of its image; set mask_suffix: {mask.removeprefix(image)!r}"
    example = f"{images[0] if images else '-'} and {masks[0] if masks else '-'}"
    return (
        f"{dataset.masks}: no mask has the name of an image in {dataset.images} (such as {example}); masks need the "
        "stem of their image, plus mask_suffix"
    )
