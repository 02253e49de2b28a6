"""How much of an ensemble fits into given time and memory: arithmetic on what was measured, and a guard that goes on
measuring while images are drawn.

What is left out is chosen by what it costs in exactness: see ``fit``.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple, TypeVar

from visionapps.errors import ConfigError
from visionapps.inference.views import Flips, Views

LEVELS: tuple[Flips, ...] = ("none", "flips", "d4")  # each has all views of the one before
PLANNED = 0.9  # of the time and memory given may be planned: the trial has not seen every image
LATEST = 0.97  # of the time given: a forecast beyond it lowers the quality of what is not drawn yet
_GIB = 2**30
T = TypeVar("T")


class Pass(NamedTuple):
    """All views of one kind by one member: what is timed, and what is looked at, as one."""

    member: int
    scale: float
    flips: Flips


@dataclass(frozen=True)
class Quality:
    """How every tile is looked at.

    Attributes:
        members: places of the members that are averaged, one at least, ascending.
        flips: see Views.
        scales: see Views.
    """

    members: tuple[int, ...]
    flips: Flips = "none"
    scales: tuple[float, ...] = (1.0,)

    @property
    def views(self) -> Views:
        """How every member looks at a tile."""
        return Views(self.flips, self.scales)

    @property
    def forwards(self) -> int:
        """Forward passes per tile."""
        return len(self.members) * len(self.views)

    @property
    def passes(self) -> tuple[Pass, ...]:
        """What is computed of a tile."""
        return tuple(Pass(member, scale, self.flips) for member in self.members for scale in self.scales)

    def lower(self) -> "tuple[Quality, ...]":
        """All that are one step below: without one member, without one scale, or with half the flips."""
        fewer = [replace(self, flips=LEVELS[LEVELS.index(self.flips) - 1])] if self.flips != "none" else []
        if len(self.scales) > 1:
            fewer += [replace(self, scales=_without(self.scales, scale)) for scale in self.scales]
        if len(self.members) > 1:
            fewer += [replace(self, members=_without(self.members, member)) for member in self.members]
        return tuple(fewer)

    def given_up(self, below: "Quality", names: Sequence[str]) -> str:
        """What is left out on the way to a lower quality, in words.

        Args:
            below: it.
            names: of all members.
        """
        said = [f"member {names[m]}" for m in self.members if m not in below.members]
        said += [f"scale {scale:g}" for scale in self.scales if scale not in below.scales]
        if below.flips != self.flips:
            said.append(f"views ({self.flips}: {len(Views(self.flips))}, {below.flips}: {len(Views(below.flips))})")
        return " and ".join(said)

    def __str__(self) -> str:
        members, views = len(self.members), len(self.views)
        parts = f"{members} member{'s'[: members != 1]} x {views} view{'s'[: views != 1]}"
        return f"{parts} = {self.forwards} forward pass{'es' if self.forwards != 1 else ''} per tile"


@dataclass(frozen=True)
class Load:
    """What one image asks for.

    Attributes:
        drawn: pixels of its map.
        seen: pixels that the network computes at scale 1, overlaps and padding included.
    """

    drawn: int
    seen: int


@dataclass(frozen=True)
class Costs:
    """What was measured.

    Attributes:
        drawn: seconds per pixel of a map, whatever its quality: reading, merging, rules, writing, verifying.
        passes: seconds per pixel that the network sees at scale 1, for every pass.
        base: bytes of the process without members.
        held: bytes of each member.
        working: bytes that computing takes beside, at each scale.
    """

    drawn: float
    passes: Mapping[Pass, float]
    base: int
    held: tuple[int, ...]
    working: Mapping[float, int]

    def seconds(self, quality: Quality, loads: Iterable[Load]) -> float:
        """That images take."""
        per_seen = sum(self.passes[item] for item in quality.passes)
        return sum(self.drawn * load.drawn + per_seen * load.seen for load in loads)

    def memory(self, quality: Quality) -> int:
        """Bytes at the peak."""
        held = sum(self.held[member] for member in quality.members)
        return self.base + held + max(self.working[scale] for scale in quality.scales)


@dataclass(frozen=True)
class Limits:
    """What may be spent.

    Attributes:
        seconds: from the start of the run to its end, > 0.
        memory: bytes of the process, > 0.
    """

    seconds: float
    memory: int

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf:
            raise ConfigError(f"--seconds {self.seconds}: must be positive, such as 32400 for nine hours")
        if self.memory <= 0:
            raise ConfigError(f"--memory {self.memory / _GIB:g}: must be positive, such as 13 (GiB)")

    @classmethod
    def of(cls, seconds: float, gib: float) -> "Limits":
        """As a person says them.

        Raises:
            ConfigError: one is not positive, or no number.
        """
        if not 0 < gib < math.inf:
            raise ConfigError(f"--memory {gib:g}: must be positive, such as 13 (GiB)")
        return cls(seconds, round(_GIB * gib))


class Forecast(NamedTuple):
    """What a quality would take."""

    seconds: float  # from the start of the run
    memory: int  # bytes


class Step(NamedTuple):
    """One thing left out."""

    quality: Quality  # without it
    loss: float  # of that quality
    forecast: Forecast


class Choice(NamedTuple):
    """What is drawn with, and what was left out for it, in this order."""

    quality: Quality
    forecast: Forecast
    steps: tuple[Step, ...]


Loss = Callable[[Quality], float]  # how far a quality's answers are from the full ones, 0 for those


@dataclass(frozen=True)
class Task:
    """Images that are to be drawn, and what is known about it.

    Attributes:
        loads: of the images.
        costs: measured.
        limits: what may be spent.
        loss: how far a quality's answers are from the full ones.
        spent: seconds that have gone by.
        pace: seconds that work really takes per second that the costs say, > 0.
    """

    loads: tuple[Load, ...]
    costs: Costs
    limits: Limits
    loss: Loss
    spent: float = 0.0
    pace: float = 1.0

    def forecast(self, quality: Quality) -> Forecast:
        """What a quality would take."""
        seconds = self.spent + self.pace * self.costs.seconds(quality, self.loads)
        return Forecast(seconds, self.costs.memory(quality))

    def fits(self, forecast: Forecast) -> bool:
        """Whether that may be planned."""
        return forecast.seconds <= PLANNED * self.limits.seconds and forecast.memory <= PLANNED * self.limits.memory


def fit(full: Quality, task: Task) -> Choice:
    """The quality that changes least of those that fit into time and memory, step by step.

    Of the steps down (a member, a scale, half the flips) that suffice by themselves, the one with the least loss is
    taken; where none suffices, the one with the least loss per second saved (per byte, where memory is what lacks), and
    so on. Where even the last single pass does not fit, any other one that does is taken.

    Args:
        full: what is wanted.
        task: the images.

    Raises:
        ConfigError: not even the cheapest single pass fits; the message tells the smallest possible time or memory.
    """
    found = search(full, task)
    if found is not None:
        return found
    singles = _singles(full)
    limits, count = task.limits, len(task.loads)
    images = f"{count} image{'s'[: count != 1]}"
    frugal = min(task.forecast(quality).memory for quality in singles)
    if frugal > PLANNED * limits.memory:
        raise ConfigError(
            f"--memory {limits.memory / _GIB:g}: at least {_up(frugal / PLANNED / _GIB, 2):g} GiB are needed, with the "
            "smallest member at its smallest scale (a tenth is kept in reserve); give more, a machine with more "
            "memory, or pack smaller tiles"
        )
    fastest = min(task.forecast(q).seconds for q in singles if task.forecast(q).memory <= PLANNED * limits.memory)
    least = math.ceil(fastest / PLANNED)
    raise ConfigError(
        f"--seconds {limits.seconds:g}: at least {least} s are needed here for {images}, with the cheapest member in a "
        f"single view ({task.spent:.0f} s of set-up and trial are in it, and a tenth in reserve); give --seconds "
        f"{least} or more, a faster device, or a smaller model"
    )


def search(full: Quality, task: Task) -> Choice | None:
    """As ``fit``, but None where nothing fits."""
    loss = cache(task.loss)
    quality, steps = full, list[Step]()
    while not task.fits(now := task.forecast(quality)):
        below = _step_down(quality, now, task, loss)
        if below is None:
            last = [q for q in _singles(full) if task.fits(task.forecast(q))]
            if not last:
                return None
            below = min(last, key=loss)
        quality = below
        steps.append(Step(quality, loss(quality), task.forecast(quality)))
    return Choice(quality, now, tuple(steps))


def _step_down(quality: Quality, now: Forecast, task: Task, loss: Loss) -> Quality | None:
    """The best single step from a quality that takes too much; None where no step saves anything."""
    late = now.seconds > PLANNED * task.limits.seconds

    def saved(below: Quality) -> float:
        then = task.forecast(below)
        return now.seconds - then.seconds if late else float(now.memory - then.memory)

    steps = [below for below in quality.lower() if saved(below) > 0]
    enough = [below for below in steps if task.fits(task.forecast(below))]
    if enough:
        return min(enough, key=lambda below: (loss(below), -saved(below)))

    def price(below: Quality) -> float:
        return (loss(below) - loss(quality)) / saved(below)

    return min(steps, key=lambda below: (price(below), -saved(below)), default=None)


def _singles(full: Quality) -> list[Quality]:
    """All qualities of one forward pass per tile."""
    return [Quality((m,), "none", (s,)) for m, s in itertools.product(full.members, full.scales)]


class Guard:
    """Watches the time while images are drawn: what is late lowers the quality of what is left, nothing raises it."""

    def __init__(self, quality: Quality, task: Task, clock: Callable[[], float]) -> None:
        """
        Args:
            quality: to begin with.
            task: its costs, limits and loss; which images are left is said each time.
            clock: seconds since the start of the run.
        """
        self.quality = quality
        self._task, self._clock = task, clock
        self._took = self._expected = 0.0

    @property
    def pace(self) -> float:
        """Seconds that drawing took so far per second that was expected."""
        return self._took / self._expected if self._expected > 0 else 1.0

    def drew(self, loads: Sequence[Load], seconds: float) -> None:
        """Take note that images were drawn, with the quality of now."""
        self._expected += self._task.costs.seconds(self.quality, loads)
        self._took += seconds

    def left(self, loads: Sequence[Load]) -> Forecast:
        """What the rest will take with the quality of now, as far as is known."""
        return self._now(loads).forecast(self.quality)

    def before(self, loads: Sequence[Load]) -> bool:
        """Look at the clock before the first of the images that are left, and lower the quality if need be.

        Returns:
            False where not even the cheapest quality would have that image drawn in time: it has to be left out.
        """
        task = self._now(loads)
        latest = LATEST * task.limits.seconds
        if task.forecast(self.quality).seconds <= latest:
            return True
        found = search(self.quality, task)
        if found is not None:
            self.quality = found.quality
            return True
        # Too late for all of them: as many as possible, with the cheapest.
        able = [q for q in _singles(self.quality) if task.costs.memory(q) <= task.limits.memory] or [self.quality]
        self.quality = min(able, key=lambda quality: task.forecast(quality).seconds)
        return self._now(loads[:1]).forecast(self.quality).seconds <= latest

    def _now(self, loads: Sequence[Load]) -> Task:
        return replace(self._task, loads=tuple(loads), spent=self._clock(), pace=self.pace)


def _without(items: tuple[T, ...], one: T) -> tuple[T, ...]:
    return tuple(item for item in items if item != one)


def _up(value: float, digits: int) -> float:
    scale = float(10**digits)
    return math.ceil(value * scale) / scale
