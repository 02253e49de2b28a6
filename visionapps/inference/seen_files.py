"""What a model was trained on, as bundles and checkpoints keep it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from visionapps.data.seen import Seen
from visionapps.errors import DataError, WeightsError

SEEN = "seen.npz"  # in a bundle, where it is known


def seen_of(folder: Path) -> Seen | None:
    """What the model of a bundle was trained on; None: the bundle does not know.

    Raises:
        WeightsError: its file is damaged.
    """
    if not (folder / SEEN).is_file():
        return None
    try:
        return Seen.load(folder / SEEN)
    except DataError as error:
        raise WeightsError(str(error)) from error


def stored_seen(said: Any, where: str) -> Seen | None:
    """What a checkpoint says that its run was trained on; None: it says nothing.

    Args:
        said: tensors by name, see Seen.arrays.
        where: names the checkpoint in messages.

    Raises:
        WeightsError: it says it in another way.
    """
    if not isinstance(said, Mapping):
        return None
    try:
        return Seen.from_arrays({str(name): np.asarray(tensor) for name, tensor in said.items()}, where)
    except DataError as error:
        raise WeightsError(str(error)) from error
