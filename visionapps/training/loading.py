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
    return DataLoader(
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


def place(trainer: Any) -> tuple[int, int]:
    """The number of this process, and how many there are; (0, 1) without a trainer."""
    return (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
