"""Inside a notebook: a package, the test images and a clock become a submission that is verified and in time."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visionapps.competition.budget import Choice, Costs, Guard, Limits, Quality, Task, fit
from visionapps.competition.budget_measure import Opinions, peak
from visionapps.competition.pack import Package, duration, gib, plain
from visionapps.competition.pack_images import asked_ids, find_images, find_sample, sizes_of
from visionapps.competition.pack_painting import Painter, load_of
from visionapps.competition.pack_trial import on_device, require_writable, try_package, write_verified
from visionapps.errors import DataError
from visionapps.files import refuse_existing, refuse_sources, whole_output
from visionapps.inference.inputs import list_inputs
from visionapps.inference.submission import NamedMask, Report, read_masks
from visionapps.inference.survey import Failure, Sheet
from visionapps.structures import IGNORE

REPORT = "visionapps_report.json"
_TRIED = 0.1  # of the time given that the trial may take before it makes do with fewer images
_GROUP = 0.01  # of the time given: what is drawn before the clock is looked at again
_SHOWN = 5  # names that a line lists
Say = Callable[[str], None]
Clock = Callable[[], float]
Measure = Callable[..., tuple[Costs, Opinions, str]]


@dataclass(frozen=True)
class Wishes:
    """What a person says to run.py; None: as it was packed, or found.

    Attributes:
        images: folder of the test images.
        sample: the sample submission.
        out: the submission.
        seconds: that the run may take, from its start.
        memory: that the process may take, in GiB.
        device: see choose_device.
        overwrite: replace the submission.
        roots: where images are looked for.
    """

    images: Path | None = None
    sample: Path | None = None
    out: Path | None = None
    seconds: float | None = None
    memory: float | None = None
    device: str = "auto"
    overwrite: bool = False
    roots: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        submission: the file.
        report: what it holds.
        choice: how all images were to be drawn, and what was left out for it.
        lowered: how images were drawn that were drawn with less, by id.
        blank: ids of images that hold nothing: there was no time, or they cannot be read.
        seconds: of the whole run.
    """

    submission: Path
    report: Report
    choice: Choice
    lowered: dict[str, Quality]
    blank: tuple[str, ...]
    seconds: float


def draw_package(
    root: Path, wishes: Wishes, *, work: Path, say: Say, clock: Clock, measure: Measure = try_package
) -> Outcome:
    """Time a few images, leave out what does not fit into time and memory, draw the rest, write and verify.

    Args:
        root: the package.
        wishes: what is said beside.
        work: an empty folder for masks.
        say: told what is going on, a line at a time.
        clock: seconds since the run began.
        measure: what the passes cost; see try_package.

    Raises:
        DataError: images are missing or do not fit the sample.
        ConfigError: time or memory do not suffice for the least quality.
        OutputError: the submission exists, cannot be written, or is not valid.
    """
    package = Package.open(root)
    out = wishes.out or Path.cwd() / package.out
    refuse_existing(out, wishes.overwrite)
    limits = Limits.of(
        package.seconds if wishes.seconds is None else wishes.seconds,
        package.memory if wishes.memory is None else wishes.memory,
    )
    base = peak()
    run = _Run(package, wishes, limits, out, work=work, say=say, clock=clock)
    run.rehearse()
    choice = run.choose(base, measure)
    run.draw(choice.quality)
    report = run.write()
    outcome = Outcome(out, report, choice, run.lowered, tuple(run.blank), clock())
    _tell(outcome, run, say)
    return outcome


class _Run:
    """One run, step by step."""

    def __init__(
        self, package: Package, wishes: Wishes, limits: Limits, out: Path, *, work: Path, say: Say, clock: Clock
    ) -> None:
        self.package, self.limits, self.clock = package, limits, clock
        self._wishes, self._out = wishes, out
        self._say, self._work = say, work
        self.sample = wishes.sample or self._find_sample() or package.sample
        refuse_sources(out, [self.sample, wishes.images])
        wanted = asked_ids(self.sample, package.rules, len(package.labels))
        # Samples and submissions of mask files have images of these ids, too.
        others = (package.root, self.sample, out)
        files = find_images(wanted, package.rules, folder=wishes.images, roots=wishes.roots, without=others)
        self.sizes, damaged = sizes_of(files)
        self._inputs = dict(zip(wanted, list_inputs([str(path) for path in files.values()]), strict=True))
        self._ids = {image.name: one for one, image in self._inputs.items()}
        self.lowered: dict[str, Quality] = {}
        self.blank: list[str] = []
        for image, reason in damaged.items():
            self._leave(image, reason)
        self._painter = Painter(package, wishes.device)
        self._sheets: dict[str, Sheet] = {}
        spec = package.spec
        self.full = Quality(tuple(range(len(spec.members))), spec.flips, spec.scales)
        pixels = sum(height * width for height, width in self.sizes.values())
        say(
            f"{len(wanted)} images of {pixels / 1e6:,.1f} megapixels in {next(iter(files.values())).parent}, asked for "
            f"by {self.sample}"
        )

    def _find_sample(self) -> Path | None:
        """The sample among the inputs; the submission of the run before is none, whatever it is called."""
        packed = self.package.sample
        hidden = (self.package.root, self._out)
        return find_sample(packed.name, self._wishes.roots, folder=packed.is_dir(), without=hidden)

    def rehearse(self) -> None:
        """Write and verify a submission without objects elsewhere: what cannot be written is told before hours pass."""
        require_writable(self._out, self.package.rules)
        nothing = ((item.stem, np.zeros(self.sizes[image], np.uint8)) for image, item in self._inputs.items())
        folder = self._work / "rehearsal"
        write_verified(nothing, folder / self._out.name, self.package, sample=self.sample, sizes=self.sizes)
        shutil.rmtree(folder)

    def choose(self, base: int, measure: Measure) -> Choice:
        """What fits into time and memory, measured."""
        painter, say = self._painter, self._say
        painter.begin(self.full, self._work / "masks")
        say(f"drawing on {painter.arithmetic}")
        self._sheets = self._survey([image for image in self._inputs if image not in self.blank])
        self._loads = {image: load_of(sheet) for image, sheet in self._sheets.items()}
        most = self.clock() + _TRIED * self.limits.seconds
        costs, opinions, text = measure(
            self.package,
            painter,
            self.full,
            list(self._sheets.values()),
            folder=self._work / "trial",
            base=base,
            late=lambda: self.clock() > most,
        )
        say(text)
        full = self.full
        self._task = Task(
            loads=tuple(self._loads.values()),
            costs=costs,
            limits=self.limits,
            loss=lambda quality: opinions.moved(full, quality),
            spent=self.clock(),
        )
        all_of_it = self._task.forecast(full)
        say(
            f"everything, {full}, would take {duration(all_of_it.seconds)} and {gib(all_of_it.memory)}; "
            f"{duration(self.limits.seconds)} and {gib(self.limits.memory)} are given, of which a tenth is kept"
        )
        choice = fit(full, self._task)
        above = full
        for step in choice.steps:
            say(
                f"left out: {above.given_up(step.quality, self.package.names)}; so probabilities are "
                f"{step.loss:.4f} away from those of everything, {opinions.changed(full, step.quality):.2%} of labels "
                f"differ (on the tiles tried); {duration(step.forecast.seconds)}, {gib(step.forecast.memory)}"
            )
            above = step.quality
        return choice

    def draw(self, quality: Quality) -> None:
        """Draw all images, the largest first, looking at the clock."""
        painter, costs = self._painter, self._task.costs
        say, clock = self._say, self.clock
        say(f"drawing {len(self._sheets)} images with {quality}")
        guard = Guard(quality, self._task, clock)
        now: Quality | None = None
        waiting = sorted(self._sheets, key=lambda image: -costs.seconds(quality, [self._loads[image]]))
        while waiting:
            loads = [self._loads[image] for image in waiting]
            if not guard.before(loads):
                self._leave(waiting.pop(0), "there is no time left for it")
                continue
            if guard.quality != now:
                if now is not None:
                    say(f"{duration(clock())}: too slow, {len(waiting)} images go on with {guard.quality}")
                now = guard.quality
                painter.keep(now)
                painter.begin(now, self._work / "masks")
                self._sheets = self._survey(waiting)
                waiting = [image for image in waiting if image in self._sheets]
            group, waiting = self._cut(waiting, guard)
            began = clock()
            painter.paint([self._sheets[image] for image in group])
            guard.drew([self._loads[image] for image in group], clock() - began)
            if now != quality:
                self.lowered |= dict.fromkeys(group, now)
            self._give_up(painter.failures)
            left = guard.left([self._loads[image] for image in waiting]).seconds
            done = f"{len(self._loads) - len(waiting)} of {len(self._loads)} images"
            say(f"{done} after {duration(clock())} of about {duration(left)}")
        painter.end()
        if len(self.blank) == len(self.sizes):
            raise DataError("no image could be drawn, so there is no submission; the warnings say why")

    def write(self) -> Report:
        """The submission, verified."""
        return write_verified(self._masks(), self._out, self.package, sample=self.sample, sizes=self.sizes)

    def _survey(self, images: Sequence[str]) -> dict[str, Sheet]:
        """Plans of images; those that cannot be opened stay blank."""
        sheets, failures = self._painter.survey([self._inputs[image] for image in images])
        if not sheets and not self._sheets:
            raise failures[0].error
        self._give_up(failures)
        return {self._ids[sheet.job.image.name]: sheet for sheet in sheets}

    def _cut(self, waiting: Sequence[str], guard: Guard) -> tuple[list[str], list[str]]:
        """The images that are drawn before the clock is looked at again, and the others."""
        most, count, seconds = _GROUP * self.limits.seconds, 0, 0.0
        for image in waiting:
            seconds += guard.pace * self._task.costs.seconds(guard.quality, [self._loads[image]])
            if count and seconds > most:
                break
            count += 1
        return list(waiting[:count]), list(waiting[count:])

    def _give_up(self, failures: Sequence[Failure]) -> None:
        for failure in failures:
            image = self._ids[failure.job.image.name]
            if image not in self.blank:
                self._leave(image, " ".join(str(failure.error).split()))

    def _leave(self, image: str, reason: str) -> None:
        self.blank.append(image)
        self._say(f"warning: image {image} stays without any object: {reason}")

    def _masks(self) -> Iterator[NamedMask]:
        """In the order of the sample, one at a time; nothing for images that were left out."""
        for image, item in self._inputs.items():
            stem = self._work / "masks" / item.stem
            if image in self.blank:
                yield item.stem, np.full(self.sizes[image], IGNORE, np.uint8)
            else:
                yield from read_masks([stem.with_name(f"{item.stem}{'.tif' if item.raster else '.png'}")])


def _tell(outcome: Outcome, run: _Run, say: Say) -> None:
    """The last lines, and the same as a file beside the submission."""
    names = run.package.names
    choice = outcome.choice
    facts: dict[str, Any] = {
        "submission": outcome.submission.name,
        "rows": outcome.report.rows,
        "images": len(run.sizes),
        "wanted": _described(run.full, names),
        "drawn_with": _described(choice.quality, names),
        "left_out": [
            {"without": above.given_up(step.quality, names), "loss": step.loss}
            for above, step in zip((run.full, *(s.quality for s in choice.steps)), choice.steps, strict=False)
        ],
        "lowered": {image: _described(quality, names) for image, quality in outcome.lowered.items()},
        "blank": list(outcome.blank),
        "seconds": {"given": run.limits.seconds, "forecast": choice.forecast.seconds, "taken": outcome.seconds},
        "bytes": {"given": run.limits.memory, "forecast": choice.forecast.memory, "peak": peak()},
    }
    with whole_output(outcome.submission.parent / REPORT, overwrite=True) as path:
        path.write_text(plain(facts), encoding="utf-8")
    rest = f"; {len(outcome.lowered)} images were drawn with less" if outcome.lowered else ""
    if outcome.blank:
        shown = ", ".join(outcome.blank[:_SHOWN])
        rest += f"; {len(outcome.blank)} hold nothing: {shown}{', ...' if len(outcome.blank) > _SHOWN else ''}"
    say(
        f"{outcome.submission}: {outcome.report.rows} rows, verified, after {duration(outcome.seconds)} (forecast "
        f"{duration(choice.forecast.seconds)}); peak {gib(peak())}{on_device()}{rest}"
    )


def _described(quality: Quality, names: Sequence[str]) -> dict[str, Any]:
    return {
        "members": [names[member] for member in quality.members],
        "flips": quality.flips,
        "scales": list(quality.scales),
    }
