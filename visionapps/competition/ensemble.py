"""Ensembles as files: bundles, how much each counts, and how all of them look at a tile.

A spec stands wherever a bundle is expected: predict, evaluate and seams read it, and what follows them needs to know
nothing of it. The members are averaged as probabilities, tile by tile, by visionapps.inference.network.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from visionapps.errors import ConfigError, WeightsError
from visionapps.files import whole_output
from visionapps.inference.bundle import description_of, purpose_of
from visionapps.inference.views import Flips, Views
from visionapps.inference.work import Computing
from visionapps.structures import LabelSpace

if TYPE_CHECKING:
    from visionapps.competition.postprocess import PostProcess

FORMAT = 1
SUFFIXES = (".yaml", ".yml")
_KEYS = ("ensemble", "members", "flips", "scales", "tile", "postprocess", "fitted")


@dataclass(frozen=True)
class Member:
    """A bundle of an ensemble.

    Attributes:
        bundle: its folder.
        weight: how much its probabilities count, > 0, relative to the others.
    """

    bundle: Path
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ConfigError(
                f"ensemble: {self.bundle} has weight {self.weight}; weights are positive, and a member that shall not "
                "count is left out"
            )


@dataclass(frozen=True)
class EnsembleSpec:
    """Which bundles are averaged, and how.

    Attributes:
        members: one at least, each bundle once.
        flips: "none", "flips" (4 views) or "d4" (8), see Views.
        scales: of the tile, each combined with each flip.
        tile: side in pixels of the tiles that are drawn; None: chosen as for one bundle. Members that were trained on
            tiles of different sides need one, since it is not clear how much each shall see.
        fitted: free plain data for people: how the weights were found, and what the rules are worth.
        postprocess: rules that turn the mean probabilities into labels, as plain data, see
            visionapps.competition.postprocess; or the file that has them, as `visionapps tune` writes it. None: the
            argmax; rules of the members are not obeyed, which were tuned on other scores.
    """

    members: tuple[Member, ...]
    flips: Flips = "none"
    scales: tuple[float, ...] = (1.0,)
    tile: int | None = None
    fitted: Mapping[str, Any] = field(default_factory=dict)
    postprocess: Mapping[str, Any] | Path | None = None

    def __post_init__(self) -> None:
        if not self.members:
            raise ConfigError("ensemble: no members; name one bundle at least")
        folders = [os.path.abspath(member.bundle) for member in self.members]
        for place, folder in enumerate(folders):
            if folder in folders[:place]:
                raise ConfigError(
                    f"ensemble: {self.members[place].bundle} is a member twice; give it once, with a larger weight"
                )
        object.__setattr__(self, "scales", self.views.scales)  # checked there
        if self.tile is not None and self.tile < 1:
            raise ConfigError(f"ensemble: tile {self.tile}: must be at least 1 pixel")

    @property
    def views(self) -> Views:
        """How every member looks at a tile."""
        return Views(self.flips, self.scales)

    @property
    def bundles(self) -> tuple[Path, ...]:
        """Folders of the members."""
        return tuple(member.bundle for member in self.members)

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the members, as they are given."""
        return tuple(member.weight for member in self.members)

    @property
    def forwards(self) -> int:
        """Forward passes per tile."""
        return len(self.members) * len(self.views)

    def computing(self, **settings: Any) -> Computing:
        """A network of all members.

        Args:
            settings: other fields of Computing: tiling, products, device, precision ...
        """
        return Computing(bundles=self.bundles, weights=self.weights, views=self.views, **settings)

    def rules(self, labels: LabelSpace, where: Path) -> "PostProcess | None":
        """The rules for the members' classes; None where there are none.

        Args:
            labels: of the members.
            where: the file of the ensemble, for what errors say.

        Raises:
            ConfigError: a file of rules cannot be read, or they are not for these classes.
        """
        from visionapps.competition.finishing import read_rules, rules_of  # numba takes a while to import

        if isinstance(self.postprocess, Path):
            return read_rules(self.postprocess, labels)
        return rules_of(self.postprocess, labels, where)

    def require_fitting(self) -> None:
        """Refuse members that cannot be averaged; weights are not read.

        Raises:
            WeightsError: a bundle is missing, draws no maps, or differs from the first in classes, bands, scale, ground
                resolution, size of the training photos, or (without a tile of the spec) tile; both are named.
        """
        for folder in self.bundles:
            if (purpose := purpose_of(folder)) != "segmentation":
                raise WeightsError(
                    f"{folder}: is made for {purpose}, but an ensemble file is for maps; average other bundles with "
                    "--member, where the verb has it"
                )
        first, *others = (_facts(description_of(folder)) for folder in self.bundles)
        for folder, facts in zip(self.bundles[1:], others, strict=True):
            for what, own in facts.items():
                if own == first[what] or (what == "tile" and self.tile is not None):
                    continue
                advice = (
                    f"say in the ensemble on which all shall be drawn: tile: {max(own, first[what])}"
                    if what == "tile"
                    else "members of an ensemble mean the same by every label and see the same pixels; leave one out"
                )
                raise WeightsError(
                    f"{folder}: was trained with {what} {_text(own)}, but {self.bundles[0]} with "
                    f"{_text(first[what])}; {advice}"
                )

    def to_dict(self, base: Path | None = None) -> dict[str, Any]:
        """Plain data; folders relative to ``base``, if given."""
        found: dict[str, Any] = {
            "ensemble": FORMAT,
            "members": [
                {"bundle": str(m.bundle if base is None else os.path.relpath(m.bundle, base)), "weight": m.weight}
                for m in self.members
            ],
            "flips": self.flips,
            "scales": list(self.scales),
        }
        found |= {"tile": self.tile} if self.tile is not None else {}
        if isinstance(self.postprocess, Path):
            file = self.postprocess if base is None else os.path.relpath(self.postprocess, base)
            found["postprocess"] = str(file)
        elif self.postprocess is not None:
            found["postprocess"] = dict(self.postprocess)
        return found | ({"fitted": dict(self.fitted)} if self.fitted else {})

    @classmethod
    def from_dict(cls, data: Any, base: Path | None = None, *, where: str = "ensemble") -> "EnsembleSpec":
        """The spec of plain data; relative folders begin at ``base``.

        Raises:
            ConfigError: a key is missing or unknown, or a value cannot work.
        """
        if not isinstance(data, Mapping) or "members" not in data:
            raise ConfigError(f"{where}: is no ensemble; expected `members:`, a list of bundles")
        if unknown := [str(key) for key in data if key not in _KEYS]:
            raise ConfigError(f"{where}: unknown keys {', '.join(unknown)}; an ensemble has {', '.join(_KEYS)}")
        if data.get("ensemble", FORMAT) != FORMAT:
            raise ConfigError(f"{where}: an ensemble of format {data['ensemble']}, but this version reads {FORMAT}")
        listed = data["members"]
        if not isinstance(listed, list):
            raise ConfigError(f"{where}: members must be a list: [bundle_a, {{bundle: bundle_b, weight: 2}}]")
        try:
            return cls(
                members=tuple(_member(item, base or Path(), where) for item in listed),
                flips=cast(Flips, _flips(data.get("flips", "none"))),
                scales=tuple(float(scale) for scale in data.get("scales") or [1.0]),
                tile=None if data.get("tile") is None else int(data["tile"]),
                fitted=dict(data.get("fitted") or {}),
                postprocess=_rules(data.get("postprocess"), base or Path()),
            )
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}: a value is of the wrong kind ({error}); see docs/ensembles.md") from error

    def save(self, path: Path, overwrite: bool = False) -> None:
        """Write the spec as YAML, folders relative to it, so that all can be moved together.

        Raises:
            OutputError: the file exists already, or the disk refuses it.
        """
        with whole_output(path, overwrite) as part:
            part.write_text(yaml.safe_dump(self.to_dict(path.parent.absolute()), sort_keys=False))

    @classmethod
    def load(cls, path: Path) -> "EnsembleSpec":
        """Read a spec; whether the bundles fit is told by ``require_fitting``.

        Raises:
            ConfigError: the file is missing, damaged, or says something that cannot work.
        """
        try:
            data = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise ConfigError(f"{path}: cannot be read as an ensemble ({reason}); see docs/ensembles.md") from error
        return cls.from_dict(data, path.parent, where=str(path))


def is_spec(path: Path) -> bool:
    """Whether a path names an ensemble's file rather than a bundle's folder."""
    return path.suffix.lower() in SUFFIXES and not path.is_dir()


def _member(item: Any, base: Path, where: str) -> Member:
    if isinstance(item, str):
        return Member(base / item)
    if not isinstance(item, Mapping) or not isinstance(item.get("bundle"), str) or set(item) - {"bundle", "weight"}:
        raise ConfigError(f"{where}: member {item!r}: expected a folder, or {{bundle: FOLDER, weight: NUMBER}}")
    return Member(base / item["bundle"], float(item.get("weight", 1.0)))


def _rules(value: Any, base: Path) -> Mapping[str, Any] | Path | None:
    if isinstance(value, str) and value:
        return base / value
    if value is None or isinstance(value, Mapping):
        return value
    raise ConfigError(f"postprocess {value!r}: expected rules, {{rules: {{roof: {{min_area: 9}}}}}}, or a file of them")


def _flips(value: Any) -> Any:
    """YAML reads a bare ``no`` as false."""
    return "none" if value in (None, False) else value


def _facts(head: Mapping[str, Any]) -> dict[str, Any]:
    """What members of an ensemble must have in common."""
    spec, labels = head.get("spec") or {}, head.get("labels") or {}
    return {
        "classes": list(labels.get("names") or ()),
        "bands": list(spec.get("bands") or ()),
        "scale": spec.get("scale"),
        "gsd": head.get("gsd"),
        "resize": head.get("resize"),
        "tile": head.get("tile"),
    }


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
