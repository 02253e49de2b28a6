"""What a package for a notebook without internet consists of; pack_making writes one, pack_drawing draws with it."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from visionapps.competition.ensemble import EnsembleSpec
from visionapps.competition.pack_images import Rules
from visionapps.competition.pack_script import FORMAT, MANIFEST
from visionapps.competition.postprocess import PostProcess
from visionapps.errors import ConfigError, WeightsError
from visionapps.inference.bundle import description_of
from visionapps.inference.file_dialects import FileDialect, load_rules
from visionapps.structures import LabelSpace

SCRIPT, NOTEBOOK, README, SPEC, DIALECT = "run.py", "submit.ipynb", "README.md", "ensemble.yaml", "dialect.yaml"
BUNDLES, WHEELS = "bundles", "wheels"
SECONDS, MEMORY = 32400.0, 13.0  # nine hours, and what a notebook of Kaggle has beside a GPU (GiB)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Package:
    """A package that lies here.

    Attributes:
        root: its folder.
        spec: the ensemble, of one member at least.
        labels: of all members.
        rules: how the competition wants its submission.
        postprocess: rules after the network; None: there are none.
        sample: the sample submission that was packed.
        seconds: that a run may take if nothing else is said.
        memory: likewise, in GiB.
    """

    root: Path
    spec: EnsembleSpec
    labels: LabelSpace
    rules: Rules
    postprocess: PostProcess | None
    sample: Path
    seconds: float = SECONDS
    memory: float = MEMORY

    @property
    def names(self) -> tuple[str, ...]:
        """Of the members."""
        return tuple(folder.name for folder in self.spec.bundles)

    @property
    def out(self) -> str:
        """What a submission is called if nothing else is said."""
        return "submission.zip" if isinstance(self.rules, FileDialect) else "submission.csv"

    @classmethod
    def open(cls, root: Path) -> "Package":
        """The package of a folder.

        Raises:
            ConfigError: a file is missing or damaged.
            WeightsError: a member lies outside of the package, is missing, or does not fit the others.
        """
        root = root.resolve()
        try:
            manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
            sample, seconds, memory = root / manifest["sample"], float(manifest["seconds"]), float(manifest["memory"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{root}: is no package ({MANIFEST}: {error}); expected what `visionapps pack` wrote"
            ) from error
        if manifest.get("format") != FORMAT:
            raise ConfigError(f"{root}: a package of format {manifest.get('format')}, but this version reads {FORMAT}")
        spec = EnsembleSpec.load(root / SPEC)
        for folder in spec.bundles:
            if root not in folder.resolve().parents:
                raise WeightsError(
                    f"{root / SPEC}: member {folder} lies outside of the package, so a notebook would not have it; "
                    "pack again instead of editing the file"
                )
        spec.require_fitting()
        labels = LabelSpace.from_dict(description_of(spec.bundles[0])["labels"])
        rules, postprocess = load_rules(str(root / DIALECT)), spec.rules(labels, root / SPEC)
        return cls(root, spec, labels, rules, postprocess, sample, seconds, memory)


def dialect_to_dict(rules: Rules) -> dict[str, Any]:
    """A dialect as plain data, without what goes without saying."""
    found: dict[str, Any] = {}
    for field in fields(rules):
        value = getattr(rules, field.name)
        if value == field.default:
            continue
        if field.name == "values":
            value = dict(value)
        found[field.name] = list(value) if isinstance(value, tuple) else value
    return found


def check_labels(rules: Rules, labels: LabelSpace) -> None:
    """Raise ConfigError where a dialect writes no label that the models have, and warn where they lack some."""
    classes = len(labels)
    written = rules.written(classes)
    strange = [label for label in written if label >= classes]
    if not strange:
        return
    text = (
        f"dialect: writes label {strange[0]}, but the models have {classes} classes, 0 to {classes - 1} "
        f"({', '.join(labels.names[:4])}{', ...' if classes > 4 else ''})"
    )
    if len(strange) == len(written):
        raise ConfigError(f"{text}; mend labels in the dialect, or pack the models of this competition")
    log.warning("%s; rows of %s labels stay empty", text, len(strange))


def duration(seconds: float) -> str:
    """For people."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def gib(size: float) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.2f} GiB"


def plain(data: Mapping[str, Any]) -> str:
    """Plain data as JSON for people."""
    return json.dumps(data, indent=2) + "\n"
