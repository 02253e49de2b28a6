"""Wheels for a machine without internet: of this project, and of what that machine lacks."""

import base64
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.parser import HeaderParser
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

import visionapps
from visionapps.errors import ConfigError, DataError

NAME = "visionapps"
# What drawing maps imports; training and other verbs need the rest. The test of a whole package holds it to the list.
_NEEDED = (
    *("torch", "torchvision", "timm", "huggingface-hub", "opencv-python-headless", "numpy", "numba", "scipy", "pillow"),
    *("defusedxml", "safetensors", "pyyaml", "tqdm"),
)
_SOMETIMES = ("rasterio", "shapely", "pycocotools")  # for rasters and for COCO counts
_SMP = "segmentation-models-pytorch"  # for models with its decoders
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that zip knows: the same code is the same bytes
_MOST = 20  # rounds of requirements of requirements
_GLIBC = (5, 12, 17)  # that manylinux had other names for


@dataclass(frozen=True)
class Target:
    """The machine that wheels are for.

    Attributes:
        python: its version, such as "3.12".
        platform: as pip calls it: "manylinux_2_35_x86_64" stands for that glibc and all older ones.
        has: versions of what is installed there, by canonical name.
    """

    python: str = f"{sys.version_info.major}.{sys.version_info.minor}"
    platform: str = "manylinux_2_35_x86_64"
    has: Mapping[str, Version] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"3\.\d+", self.python):
            raise ConfigError(f"--python {self.python}: expected major and minor version of the notebook, such as 3.12")

    @property
    def platforms(self) -> tuple[str, ...]:
        """All names that pip has to be told, since it takes each one literally."""
        found = re.fullmatch(r"manylinux_2_(\d+)_(\w+)", self.platform)
        if not found:
            return (self.platform,)
        newest, machine = int(found[1]), found[2]
        named = [f"manylinux_2_{minor}_{machine}" for minor in range(newest, 4, -1)]
        old = zip(_GLIBC, ("manylinux1", "manylinux2010", "manylinux2014"), strict=True)
        return (*named, *(f"{name}_{machine}" for minor, name in old if minor <= newest))

    def environment(self, extra: str = "") -> dict[str, str]:
        """What markers of requirements are judged by."""
        linux = "linux" in self.platform
        windows = self.platform.startswith("win")
        return {
            "python_version": self.python,
            "python_full_version": f"{self.python}.0",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
            "platform_machine": "AMD64" if windows else self.platform.partition("x86_64")[1] or "aarch64",
            "platform_system": "Linux" if linux else "Windows" if windows else "Darwin",
            "sys_platform": "linux" if linux else "win32" if windows else "darwin",
            "os_name": "nt" if windows else "posix",
            "extra": extra,
        }


def project_wheel(folder: Path) -> Path:
    """A wheel of visionapps as it is installed, editable or not; nothing is built, so nothing has to be downloaded.

    Args:
        folder: where it goes.

    Returns:
        The file; the same code gives the same bytes.

    Raises:
        ConfigError: visionapps is not installed, or its metadata are of another version than its code.
    """
    installed = _installed()
    code = Path(visionapps.__file__).parent
    version = visionapps.__version__
    info = f"{NAME}-{version}.dist-info"
    files = {f"{NAME}/{path.relative_to(code).as_posix()}": path.read_bytes() for path in _code_files(code)}
    files[f"{info}/METADATA"] = _metadata(installed).encode()
    files[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: visionapps ({version})\nRoot-Is-Purelib: true\nTag: py3-none-any\n".encode()
    )
    if entries := installed.read_text("entry_points.txt"):
        files[f"{info}/entry_points.txt"] = entries.encode()
    for file in installed.files or ():
        if "licenses" in file.parts:
            files[f"{info}/licenses/{file.name}"] = Path(str(file.locate())).read_bytes()
    lines = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in files.items()]
    files[f"{info}/RECORD"] = "\n".join((*lines, f"{info}/RECORD,,\n")).encode()
    path = folder / f"{NAME}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return path


def requirements(smp: bool) -> tuple[list[str], list[str]]:
    """What drawing maps with a package needs, and what it needs for some images only, with their versions.

    Args:
        smp: a model has a decoder of segmentation-models-pytorch.
    """
    of_name: dict[str, str] = {}
    for text in _installed().requires or ():
        found = Requirement(text)
        if found.marker is None:
            of_name[canonicalize_name(found.name)] = str(found)
    needed = (*_NEEDED, _SMP) if smp else _NEEDED
    return [of_name[name] for name in needed], [of_name[name] for name in _SOMETIMES]


def read_installed(path: Path) -> dict[str, Version]:
    """What a machine has, of the output of `pip freeze` or `pip list` there.

    Raises:
        DataError: it cannot be read, or has no line of either form.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give what `pip freeze` prints in the notebook") from error
    found: dict[str, Version] = {}
    for line in lines:
        # name==1.0, name 1.0, or name @ file:///tmp/name-1.0-py3-none-any.whl
        match = re.match(r"\s*([A-Za-z0-9][\w.-]*)\s*(?:==\s*|\s)(\d\S*)", line)
        wheel = re.match(r"\s*[\w.-]+\s*@\s*\S*/([^/\s#]+\.whl)", line)
        try:
            if wheel:
                name, version, _, _ = parse_wheel_filename(wheel[1])
                found[name] = version
            elif match:
                found[canonicalize_name(match[1])] = Version(match[2])
        except ValueError:  # a line of another kind
            continue
    if not found:
        raise DataError(f"{path}: names no package with its version; give what `pip freeze` prints in the notebook")
    return found


def fetch(wanted: Sequence[str], folder: Path, target: Target) -> list[Path]:
    """Download what a machine lacks, and what that needs in turn.

    Args:
        wanted: requirements.
        folder: where wheels go.
        target: the machine.

    Returns:
        The wheels.

    Raises:
        ConfigError: the index has no such wheel for that machine, or two wheels do not go together.
    """
    got: dict[str, tuple[Version, Path]] = {}
    waiting = [Requirement(text) for text in wanted]
    for _ in range(_MOST):
        missing = list(_missing(waiting, target, got))
        if not missing:
            return [path for _, path in got.values()]
        waiting = []
        for path in _download([str(requirement) for requirement in missing], folder, target):
            name, version, _, _ = parse_wheel_filename(path.name)
            got[name] = version, path
            asked = next(item for item in missing if canonicalize_name(item.name) == name)
            waiting += _requires(path, target, asked.extras)
    raise ConfigError(f"wheels: requirements of requirements do not end after {_MOST} rounds; give --has FILE")


def _missing(
    wanted: Iterable[Requirement], target: Target, got: Mapping[str, tuple[Version, Path]]
) -> Iterator[Requirement]:
    """What neither the machine has nor a wheel brings, each name once."""
    seen: dict[str, Requirement] = {}
    for requirement in wanted:
        name = canonicalize_name(requirement.name)
        if name in got:
            version, path = got[name]
            if not requirement.specifier.contains(version, prereleases=True):
                raise ConfigError(
                    f"wheels: {requirement} is needed, but {path.name} was chosen for another requirement; tell what "
                    "the notebook has with --has FILE, or download these wheels by hand"
                )
            continue
        there = next((target.has[twin] for twin in (name, *twins(name)) if twin in target.has), None)
        if there is not None and requirement.specifier.contains(there, prereleases=True):
            continue
        before = seen.get(name)
        if before is None:
            seen[name] = Requirement(str(requirement))
            seen[name].marker = None  # judged already
        else:
            before.specifier &= requirement.specifier
            before.extras |= requirement.extras
    yield from seen.values()


def twins(name: str) -> tuple[str, ...]:
    """Distributions that bring the same module as another one."""
    if name != "opencv-python-headless":
        return ()
    return ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")


def _requires(wheel: Path, target: Target, extras: Iterable[str]) -> list[Requirement]:
    """What a wheel needs on a machine."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = HeaderParser().parsestr(archive.read(name).decode()).get_all("Requires-Dist", [])
    found = []
    for text in lines:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:  # of an old form that pip would leave out, too
            continue
        marker = requirement.marker
        if marker is None or any(marker.evaluate(target.environment(extra)) for extra in ("", *extras)):
            found.append(requirement)
    return found


def _download(wanted: Sequence[str], folder: Path, target: Target) -> list[Path]:
    platforms = [word for platform in target.platforms for word in ("--platform", platform)]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", target.python]
        command += [*platforms, "--dest", place, *wanted]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise ConfigError(
                f"wheels of {', '.join(wanted)} for Python {target.python} on {target.platform}: pip says "
                f"{' '.join(said) or done.stderr.strip()[-500:]}; name what the notebook has with --has FILE, or "
                "another --python or --platform"
            )
        found = []
        for path in sorted(Path(place).iterdir()):
            os.replace(path, folder / path.name)
            found.append(folder / path.name)
    return found


def _installed() -> Distribution:
    """The metadata of visionapps, of an installation rather than of a build that lies beside it."""
    found = list(distributions(name=NAME))
    if not found:
        raise ConfigError("pack: visionapps is not installed in this Python; run `pip install -e .` where it lies")
    best = next((item for item in found if item.read_text("METADATA")), found[0])
    if best.version != visionapps.__version__:
        raise ConfigError(
            f"pack: visionapps was installed as {best.version}, but its code is {visionapps.__version__}; install it "
            "again"
        )
    return best


def _metadata(installed: Distribution) -> str:
    return installed.read_text("METADATA") or installed.read_text("PKG-INFO") or ""


def _code_files(code: Path) -> Iterator[Path]:
    for path in sorted(code.rglob("*")):
        hidden = any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(code).parts)
        if path.is_file() and not hidden and path.suffix not in (".pyc", ".so"):
            yield path


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
