"""How the work of many scenes is cut into tasks for several workers. The maps do not depend on it, only the waiting."""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

from visionapps.errors import ConfigError
from visionapps.inference.work import Part, Task

_ROWS = 8  # tile rows of a piece: it draws one more for its overlap, so that this costs an eighth at most
_AHEAD = 32  # parts per worker that are looked at to know how much work there is
_TILES = 64  # of small scenes in one task: below, handing it out would cost more than waiting for it
_FEW = 32  # tiles of a scene: below, it is not worth a cut
_PARTS = 32  # in one task, so that it always fits into a pipe


def split(parts: Iterable[Part], workers: int) -> Iterator[Task]:
    """Cut and gather parts into tasks, larger ones first, so that all workers end at about the same time.

    Every task is half of a worker's fair share of what lies ahead: tasks shrink toward the end of the last scene.
    Scenes are cut only where that pays, and small ones are gathered.

    Args:
        parts: scenes, whole or in part; taken a few ahead of what is given out.
        workers: that work at the same time, >= 1.

    Yields:
        Tasks that hold every tile row once, in the order of the parts.

    Raises:
        ConfigError: there is no worker.
    """
    if workers < 1:
        raise ConfigError(f"workers {workers}: at least 1 is needed")
    coming = iter(parts)
    waiting: deque[Part] = deque()
    while True:
        waiting.extend(islice(coming, _AHEAD * workers - len(waiting)))
        if not waiting:
            return
        share = -(-sum(map(_tiles, waiting)) // (2 * workers))
        cut = _cut(waiting, share, workers)
        if cut < len(waiting[0].rows):
            part, rows = waiting[0], waiting[0].rows
            waiting[0] = part._replace(rows=rows[cut:])
            yield Task((part._replace(rows=rows[:cut]),))
        else:
            yield Task(tuple(_gather(waiting, share)))


def _cut(waiting: deque[Part], share: int, workers: int) -> int:
    """How many tile rows of the first part make a task."""
    part = waiting[0]
    rows, columns = len(part.rows), len(part.plan.cols.starts)
    scene = len(part.plan.rows.starts)
    if scene >= 2 * _ROWS * workers:
        wanted = max(_ROWS, share // columns)
    elif (
        len(waiting) < workers and _tiles(part) >= _FEW
    ):  # the last scenes of a run: better a row computed twice than a worker without work
        wanted = max(2, -(-scene // workers))
    else:
        return rows
    # A rest that is too small for a task of its own stays with this one.
    return wanted if rows >= wanted + min(_ROWS, wanted) // 2 else rows


def _gather(waiting: deque[Part], share: int) -> Iterator[Part]:
    """Take parts off the front as they are: at least one, and no more than make a task."""
    most, tiles, count = min(_TILES, share), 0, 0
    while waiting and (not count or (count < _PARTS and tiles + _tiles(waiting[0]) <= most)):
        part = waiting.popleft()
        tiles, count = tiles + _tiles(part), count + 1
        yield part


def _tiles(part: Part) -> int:
    return len(part.rows) * len(part.plan.cols.starts)
