"""SAHI's sliced prediction of a raster with a torchvision detector, as its documentation shows it.

Needs sahi (0.12 was measured); nothing of visionapps.
"""

from pathlib import Path
from typing import Any

from torch import nn


def sliced(model: nn.Module, raster: Path, *, tile: int, overlap: int, classes: int, device: str) -> int:
    """Detect in a raster with SAHI's own defaults for merging.

    Args:
        model: takes a list of (3, h, w) float images and gives torchvision's dictionaries.
        raster: what to detect in.
        tile: side of the slices in pixels.
        overlap: pixels that they share.
        classes: numbers of labels that the model may give.
        device: cpu or cuda.

    Returns:
        How many objects there are.
    """
    from sahi.predict import get_sliced_prediction

    share = overlap / tile
    result: Any = get_sliced_prediction(
        str(raster),
        prepared(model, classes, device),
        slice_height=tile,
        slice_width=tile,
        overlap_height_ratio=share,
        overlap_width_ratio=share,
        perform_standard_pred=False,
        verbose=0,
    )
    return len(result.object_prediction_list)


_PREPARED: dict[int, Any] = {}


def prepared(model: nn.Module, classes: int, device: str) -> Any:
    """The model in SAHI's adapter, made once: that is no part of a prediction."""
    from sahi.models.torchvision import TorchVisionDetectionModel

    if id(model) not in _PREPARED:
        _PREPARED[id(model)] = TorchVisionDetectionModel(
            model=model,
            confidence_threshold=0.25,  # below 0.1 SAHI leaves its own default of merging, greedy NMM
            device=device,
            category_mapping={str(i): str(i) for i in range(classes)},
            load_at_init=True,
        )
    return _PREPARED[id(model)]
