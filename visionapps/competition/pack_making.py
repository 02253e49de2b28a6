"""Writes a package: everything that a submission needs where there is no internet, in one folder."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from visionapps import __version__
from visionapps.competition import pack_drawing, pack_script
from visionapps.competition.ensemble import EnsembleSpec, Member
from visionapps.competition.finishing import read_rules, rules_of
from visionapps.competition.notebook import notebook
from visionapps.competition.pack import (
    BUNDLES,
    DIALECT,
    MEMORY,
    NOTEBOOK,
    README,
    SCRIPT,
    SECONDS,
    SPEC,
    WHEELS,
    Package,
    check_labels,
    dialect_to_dict,
    plain,
)
from visionapps.competition.pack_images import Rules, asked_ids, find_images
from visionapps.competition.pack_script import FORMAT, MANIFEST
from visionapps.competition.pack_wheels import Target, fetch, project_wheel, requirements
from visionapps.competition.postprocess import PostProcess
from visionapps.errors import ConfigError
from visionapps.files import whole_output
from visionapps.inference.bundle import CARD, MODEL, WEIGHTS, Bundle, description_of, load
from visionapps.structures import LabelSpace

_PYTHON = (3, 11)  # the oldest that visionapps runs on


@dataclass(frozen=True)
class Contents:
    """What is packed.

    Attributes:
        spec: the ensemble.
        rules: how the competition wants its submission.
        sample: its sample submission: a file, or a folder of mask files.
        postprocess: file of rules after the network; None: those of the ensemble, or of the only bundle.
        plain: no rules, whatever the ensemble or the bundle says.
        images: the test images, to hold the sample against; None: that is left to the run.
        seconds: that a run may take.
        memory: GiB that it may take.
    """

    spec: EnsembleSpec
    rules: Rules
    sample: Path
    postprocess: Path | None = None
    plain: bool = False
    images: Path | None = None
    seconds: float = SECONDS
    memory: float = MEMORY


@dataclass(frozen=True)
class Packed:
    """What was written.

    Attributes:
        folder: the package.
        files: size of each, by name.
        wheels: names of those that were downloaded.
        unused: members whose rules are not obeyed, since they were tuned on their own scores.
    """

    folder: Path
    files: dict[str, int]
    wheels: tuple[str, ...]
    unused: tuple[Path, ...]


def make_package(contents: Contents, out: Path, *, target: Target | None = None) -> Packed:
    """Write a package, whole or not at all.

    Args:
        contents: what is packed.
        out: its folder.
        target: download wheels that this machine lacks; None: the notebook has all that is needed.

    Raises:
        OutputError: the folder exists, or the disk refuses it.
        WeightsError: a bundle is missing or damaged, or members do not fit together.
        DataError: the sample cannot be read, or asks for other images than there are.
        ConfigError: the dialect writes no label that the models have; rules are not for their classes.
    """
    with whole_output(out) as folder:
        folder.mkdir()
        contents.spec.require_fitting()
        # What is quick to see goes first: weights are read for the sake of those that are damaged.
        labels = LabelSpace.from_dict(description_of(contents.spec.bundles[0])["labels"])
        check_labels(contents.rules, labels)
        wanted = asked_ids(contents.sample, contents.rules, len(labels))
        if contents.images is not None:
            find_images(wanted, contents.rules, folder=contents.images)
        bundles = [load(bundle) for bundle in contents.spec.bundles]
        unused = _write_model(contents, bundles, folder)
        _write_competition(contents, folder)
        needed, optional = requirements(any(map(_has_smp, bundles)))
        wheels = folder / WHEELS
        wheels.mkdir()
        own = project_wheel(wheels)
        fetched = fetch([*needed, *optional], wheels, target) if target else []
        (folder / "requirements.txt").write_text("\n".join(needed) + "\n")
        shutil.copyfile(str(pack_script.__file__), folder / SCRIPT)
        _write_notebook(contents, folder, labels)
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "visionapps": __version__,
            "python": list(_PYTHON),
            "wheel": own.name,
            "requirements": needed,
            "optional": optional,
            "sample": contents.sample.name,
            "seconds": contents.seconds,
            "memory": contents.memory,
        }
        _seal(folder, manifest, contents, labels)
        files = {name: (folder / name).stat().st_size for name in _names(folder)}
    return Packed(out, files, tuple(path.name for path in fetched), unused)


def _write_model(contents: Contents, bundles: Sequence[Bundle], folder: Path) -> tuple[Path, ...]:
    """Bundles, the ensemble's file, and rules after the network. Returns bundles whose rules are left behind."""
    spec, labels = contents.spec, bundles[0].labels
    digits = len(str(len(bundles)))
    members = []
    for number, member in enumerate(spec.members, 1):
        # Folders of runs are often called alike: the number tells them apart, what is above them what they are.
        given = member.bundle.resolve()
        place = folder / BUNDLES / f"{number:0{digits}d}-{_word(given.parent.name)}-{_word(given.name)}"
        place.mkdir(parents=True)
        for name in (MODEL, WEIGHTS, CARD):
            shutil.copyfile(member.bundle / name, place / name)
        members.append(Member(place, member.weight))
    rules = _rules(contents, bundles)
    packed = replace(spec, members=tuple(members), postprocess=rules.to_dict(labels.names) if rules else None)
    packed.save(folder / SPEC)
    ruled = tuple(path for path, bundle in zip(spec.bundles, bundles, strict=True) if bundle.postprocess is not None)
    return () if rules or contents.plain else ruled


def _rules(contents: Contents, bundles: Sequence[Bundle]) -> PostProcess | None:
    """Of the file that is given, of the ensemble, or of a bundle that stands alone."""
    spec, labels = contents.spec, bundles[0].labels
    if contents.plain:
        return None
    if contents.postprocess is not None:
        return read_rules(contents.postprocess, labels)
    if spec.postprocess is not None or len(bundles) > 1:
        return spec.rules(labels, Path("the ensemble's file"))
    return rules_of(bundles[0].postprocess, labels, spec.bundles[0])


def _write_competition(contents: Contents, folder: Path) -> None:
    """The dialect in full, and the sample."""
    (folder / DIALECT).write_text(yaml.safe_dump(dialect_to_dict(contents.rules), sort_keys=False))
    if contents.sample.name in (SPEC, DIALECT, README, SCRIPT, NOTEBOOK, MANIFEST, BUNDLES, WHEELS):
        raise ConfigError(f"{contents.sample}: a package has a file of this name; call the sample otherwise")
    if contents.sample.is_dir():
        shutil.copytree(contents.sample, folder / contents.sample.name)
    else:
        shutil.copyfile(contents.sample, folder / contents.sample.name)


def _write_notebook(contents: Contents, folder: Path, labels: LabelSpace) -> None:
    package = Package(folder, contents.spec, labels, contents.rules, None, contents.sample)
    text = notebook(
        title="Submission with visionapps",
        seconds=contents.seconds,
        memory=contents.memory,
        out=package.out,
        names=(MANIFEST, SCRIPT, pack_drawing.REPORT),
    )
    (folder / NOTEBOOK).write_text(text, encoding="utf-8")


def _seal(folder: Path, manifest: dict[str, Any], contents: Contents, labels: LabelSpace) -> None:
    """The manifest with a digest of every file, and the same for people."""
    facts = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": _digest(folder / name)} for name in _names(folder)
    }
    (folder / MANIFEST).write_text(plain({**manifest, "files": facts}), encoding="utf-8")
    rows = "\n".join(f"| `{name}` | {fact['bytes']:,} | `{fact['sha256']}` |" for name, fact in facts.items())
    members = len(contents.spec.members)
    (folder / README).write_text(
        f"# Submission package\n\nvisionapps {__version__}: {members} member{'s'[: members != 1]}, "
        f"{contents.spec.forwards} forward passes per tile, {len(labels)} classes. `{NOTEBOOK}` runs it in a notebook, "
        f"`python {SCRIPT}` anywhere; neither needs internet. A run may take {contents.seconds:g} seconds and "
        f"{contents.memory:g} GiB if nothing else is said. What is edited is refused: pack again.\n\n"
        f"| file | bytes | SHA-256 |\n|---|---|---|\n{rows}\n",
        encoding="utf-8",
    )


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _has_smp(bundle: Bundle) -> bool:
    return any(type(module).__module__.startswith("segmentation_models_pytorch") for module in bundle.model.modules())


def _word(name: str) -> str:
    """A folder's name with nothing in it that an upload might change."""
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "_.") else "_" for letter in name)
