"""How items become batches: one loader for all kinds of data, and its work divided among processes."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from visionapps.data.crops import EpochIndices, init_worker
from visionapps.errors import ConfigError

T = TypeVar("T")
_MOST_WORKERS = 8  # by default: more of them wait for each other's memory


class Share(Sampler[int]):
    """Every world-th index of an order, so that processes share the items of an epoch evenly.

    Lightning's own distributed sampler would wrap the order and no longer tell it the epoch.
    """

    def __init__(self, order: EpochIndices, rank: int, world: int) -> None:
        self._order = order
        self._rank = rank
        self._world = world

    def set_epoch(self, epoch: int) -> None:
        self._order.set_epoch(epoch)

    def __len__(self) -> int:
        # Equal for all processes: one with a batch more would wait for the others for ever.
        return len(self._order) // self._world

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self._order, self._rank, len(self) * self._world, self._world)


class Rest(Sampler[int]):
    """An order without what a resumed run has seen of its epoch.

    Args:
        order: indices of an epoch.
        seen: how many of them to leave out; asked when an epoch begins.
    """

    def __init__(self, order: Sampler[int], seen: Callable[[], int]) -> None:
        self._order = order
        self._seen = seen

    def set_epoch(self, epoch: int) -> None:
        self._order.set_epoch(epoch)  # type: ignore[attr-defined]

    def __len__(self) -> int:
        # Of the whole epoch: Lightning itself subtracts the batches that are done.
        return len(self._order)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self._order, self._seen(), None)


class Batches(DataLoader[T]):
    """A loader that looks at its order when the first batch is wanted.

    Lightning makes the iterator of the first epoch before it has read a checkpoint, and workers would begin with the
    first epoch of all instead of the one that is gone on with.
    """

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: where to go on follows from the batches that are done. Lightning would warn without it."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to do."""


def batches(
    items: Dataset[Any],
    order: Iterable[int],
    *,
    collate: Callable[[list[Any]], T],
    batch_size: int,
    workers: int,
    drop_last: bool = False,
) -> DataLoader[T]:
    """Batches of items, prepared by worker processes that live as long as the loader.

    Args:
        items: found by index.
        order: indices of one epoch after another.
        collate: makes a batch of a list of items.
        batch_size: items in a batch.
        workers: processes; 0: this one prepares the batches.
        drop_last: leave an incomplete batch out.
    """
    return Batches(
        items,
        batch_size=batch_size,
        sampler=order,
        num_workers=workers,
        collate_fn=collate,
        drop_last=drop_last,
        persistent_workers=workers > 0,
        worker_init_fn=init_worker,
        pin_memory=torch.cuda.is_available(),
    )


def worker_count(workers: int | None) -> int:
    """The number that was asked for; None: one less than the cores, at most 8.

    Raises:
        ConfigError: it is negative.
    """
    if workers is None:
        return min(_MOST_WORKERS, max(0, (os.cpu_count() or 1) - 1))
    if workers < 0:
        raise ConfigError(f"data: workers {workers} must be at least 0, or none for as many as the cores allow")
    return workers


def training_batches(
    items: Dataset[Any],
    order: Sampler[int],
    *,
    collate: Callable[[list[Any]], T],
    batch_size: int,
    workers: int,
    trainer: Any,
) -> DataLoader[T]:
    """Batches to learn from; a run that was interrupted within an epoch goes on with the items that it has not seen.

    An incomplete batch is left out, unless it is the only one.

    Args:
        items: found by index.
        order: indices of one epoch after another; told the epoch by ``set_epoch``.
        collate: makes a batch of a list of items.
        batch_size: items in a batch.
        workers: processes; 0: this one prepares the batches.
        trainer: of the run; None: every epoch is whole.
    """

    def seen() -> int:
        return batch_size * trainer.fit_loop.epoch_loop.batch_progress.current.ready if trainer else 0

    drop = len(order) >= batch_size  # type: ignore[arg-type]
    rest = Rest(order, seen)
    return batches(items, rest, collate=collate, batch_size=batch_size, workers=workers, drop_last=drop)


def place(trainer: Any) -> tuple[int, int]:
    """The number of this process, and how many there are; (0, 1) without a trainer."""
    return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
