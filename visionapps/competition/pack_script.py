"""Write a submission with the package that this script lies in: offline, from any folder, with nothing but Python.

python run.py                                      finds the test images, stops in time, writes ./submission.csv
python run.py --images /data/test --seconds 3600   or says where they are, and how long it may take

It checks the package, installs what this Python lacks beside itself (never into it), and leaves the rest to visionapps.
"""
# This module is copied into packages as run.py: it imports the standard library alone until all is installed.

import argparse
import hashlib
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

BEGAN = time.monotonic()
MANIFEST = "visionapps_package.json"
FORMAT = 1


class PackageError(Exception):
    """What is wrong, and what to do."""


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_version(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(number, int) for number in value)


def _are_files(value: object) -> bool:
    """Names, each with what is known of the file."""
    return isinstance(value, dict) and all(
        isinstance(facts, dict) and _is_number(facts.get("bytes")) and _is_text(facts.get("sha256"))
        for facts in value.values()
    )


_KEYS: dict[str, Callable[[object], bool]] = {  # what has to stand in the manifest
    "python": _is_version,
    "files": _are_files,
    "wheel": _is_text,
    "requirements": _are_texts,
    "optional": _are_texts,
    "sample": _is_text,
    "seconds": _is_number,
    "memory": _is_number,
}


def main(argv: Sequence[str] | None = None, root: Path | None = None, began: float = BEGAN) -> int:
    """Check, install, draw. Returns the exit code: 0 when a submission is there.

    Args:
        argv: arguments; None: those of the command line.
        root: the package; None: where this file lies.
        began: when the run started, by time.monotonic.
    """
    root = (root or Path(__file__).parent).resolve()
    options = _parser().parse_args(argv)
    try:
        manifest = read_manifest(root)
        check_files(root, manifest)
        with _workplace(options.work) as work:
            if not options.installed:
                install(root, manifest, Path(work) / "site")
            return _draw(root, options, Path(work), began)
    except PackageError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


def _workplace(folder: Path | None) -> "tempfile.TemporaryDirectory[str]":
    """A new folder that vanishes with the run."""
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix="visionapps_", dir=folder)
    except OSError as error:
        place = folder or tempfile.gettempdir()
        raise PackageError(f"{place}: no folder can be made here ({error.strerror}); give another --work") from error


def read_manifest(root: Path) -> dict[str, Any]:
    """What the package says of itself.

    Raises:
        PackageError: it is none, or none for this Python.
    """
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PackageError(f"{root}: {MANIFEST} cannot be read ({error}); copy the whole package again") from error
    form = manifest.get("format") if isinstance(manifest, dict) else None
    if form != FORMAT:
        raise PackageError(f"{root}: a package of format {form}, but run.py reads {FORMAT}")
    wrong = [name for name, fits in _KEYS.items() if not fits(manifest.get(name))]
    if wrong:
        raise PackageError(
            f"{root}: {MANIFEST} lacks {', '.join(wrong)}, or holds something else there; copy the whole package again"
        )
    least = tuple(manifest["python"])
    if sys.version_info[:2] < least:
        own = ".".join(map(str, sys.version_info[:2]))
        raise PackageError(f"Python {least[0]}.{least[1]} or later is needed, but this is {own}; choose another image")
    return dict(manifest)


def check_files(root: Path, manifest: dict[str, Any]) -> None:
    """Hold all files against their sizes and digests.

    Raises:
        PackageError: a file is missing, or is not what was packed.
    """
    for name, facts in manifest["files"].items():
        path = root / name
        if not path.is_file():
            raise PackageError(f"{path}: missing; upload the whole package again, folders included")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != facts["sha256"]:
            raise PackageError(
                f"{path}: is not what was packed ({path.stat().st_size} bytes; {facts['bytes']} with another SHA-256 "
                "were); it was damaged or edited: upload it again, or pack again"
            )


def install(root: Path, manifest: dict[str, Any], site: Path) -> None:
    """Put visionapps, and what this Python lacks, into a folder of its own, first on the path.

    Raises:
        PackageError: the package has no wheel of something that is lacking, or pip fails.
    """
    wheels = root / "wheels"
    lacking = [text for text in manifest["requirements"] if not _satisfied(text)]
    found = [wheels / manifest["wheel"]]
    if lacking:
        found += _resolve(lacking, wheels)
    for text in manifest["optional"]:  # for rasters and the like: welcome, but not needed
        if _brought(text, wheels) and not _satisfied(text):
            found += _resolve([text], wheels)
    names = sorted({str(path) for path in found})
    _pip("install", "--quiet", "--no-deps", "--no-compile", "--target", str(site), *names)
    sys.path.insert(0, str(site))
    importlib.invalidate_caches()
    if len(names) > 1:
        sys.stderr.write(f"installed from the package: {', '.join(sorted(Path(name).name for name in names))}\n")


def _satisfied(text: str) -> bool:
    """Whether this Python has what a requirement asks for."""
    requirement = _packaging("requirements").Requirement(text)
    names = [requirement.name]
    if requirement.name == "opencv-python-headless":  # whoever brings cv2
        names += ["opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless"]
    for name in names:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if requirement.specifier.contains(version, prereleases=True):
            return True
    return False


def _brought(text: str, wheels: Path) -> bool:
    """Whether the package has a wheel of that name."""
    name = _packaging("requirements").Requirement(text).name.lower().replace("-", "_")
    return any(path.name.lower().startswith(f"{name}-") for path in wheels.glob("*.whl"))


def _packaging(part: str) -> Any:
    try:
        return importlib.import_module(f"packaging.{part}")
    except ImportError:
        return importlib.import_module(f"pip._vendor.packaging.{part}")  # pip is needed anyway


def _resolve(lacking: Sequence[str], wheels: Path) -> list[Path]:
    """The wheels of the package that bring what is lacking, and what these need in turn."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        try:
            _pip("install", "--quiet", "--dry-run", "--report", str(report), "--find-links", str(wheels), *lacking)
        except PackageError as error:
            there = ", ".join(sorted(path.name for path in wheels.glob("*.whl")))
            raise PackageError(
                f"this Python lacks {', '.join(lacking)}, and the wheels of the package ({there}) do not bring it; run "
                f"`pip freeze > have.txt` here, and pack again with --wheels --has have.txt --python "
                f"{sys.version_info.major}.{sys.version_info.minor} ({error})"
            ) from error
        plan = json.loads(report.read_text(encoding="utf-8"))
    names = {Path(item["download_info"]["url"]).name for item in plan["install"]}
    return [path for path in wheels.glob("*.whl") if path.name in names or path.name.replace("+", "%2B") in names]


def _pip(*arguments: str) -> None:
    """Run pip without network, and without what may be configured here."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_CACHE_DIR": "1"}
    command = [sys.executable, "-m", "pip", *arguments[:1], "--no-index", *arguments[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        said = " ".join(line for line in done.stderr.splitlines() if line.startswith("ERROR"))
        raise PackageError(f"pip: {said or done.stderr.strip()[-500:] or 'no pip in this Python'}")


def _draw(root: Path, options: argparse.Namespace, work: Path, began: float) -> int:
    runtime = importlib.import_module("visionapps.runtime")
    runtime.keep_freed_memory()  # before the first tensor
    errors = importlib.import_module("visionapps.errors")
    drawing = importlib.import_module("visionapps.competition.pack_drawing")
    try:
        wishes = drawing.Wishes(
            images=options.images,
            sample=options.sample,
            out=options.out,
            seconds=options.seconds,
            memory=options.memory,
            device=options.device,
            overwrite=options.overwrite,
            roots=tuple(_roots(root)),
        )
        drawing.draw_package(root, wishes, work=work, say=_say, clock=_since(began))
    except errors.VisionAppsError as error:
        raise PackageError(" ".join(str(error).split())) from error
    return 0


def _roots(root: Path) -> Iterator[Path]:
    """Where test images may lie: where notebooks find their inputs, beside the package, and here."""
    kaggle = Path("/kaggle/input")
    yield from dict.fromkeys(path.resolve() for path in (kaggle, root.parent, Path.cwd()) if path.is_dir())


def _since(began: float) -> Callable[[], float]:
    return lambda: time.monotonic() - began


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()  # notebooks show lines as they come


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="the test images (found by the sample's ids)")
    parser.add_argument("--sample", type=Path, metavar="FILE", help="sample submission (found; else the packed one)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="submission to write (in this folder)")
    parser.add_argument("--overwrite", action="store_true", help="replace it")
    parser.add_argument("--seconds", type=float, metavar="S", help="that the run may take (as packed)")
    parser.add_argument("--memory", type=float, metavar="GIB", help="that the process may take (as packed)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (auto: cuda if there is one)")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="for masks and installed wheels (a temporary one)")
    parser.add_argument("--installed", action="store_true", help="take visionapps as this Python has it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
