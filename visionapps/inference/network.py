"""Everything that happens to a batch of tiles on the device: raw values in, planes of scores out.

Shapes: B tiles, C bands, K classes, S score planes, h w tile.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from visionapps.errors import ConfigError
from visionapps.inference.products import Form
from visionapps.inference.views import ONE_VIEW, Views
from visionapps.runtime import cpu_has_bf16
from visionapps.segmentation.base import Segmentor
from visionapps.structures import InputSpec

Precision = Literal["auto", "fp32", "bf16", "fp16"]
log = logging.getLogger(__name__)


class Network:
    """Applies one model, or several and their views, to batches of tiles. It takes the models over: moves them to the
    device and to evaluation mode.

    Attributes:
        device: where everything happens.
        spec: what the members eat.
        num_classes: K.
        stride: tiles must be multiples of it, in pixels.
        form: what the first K score planes are.
    """

    def __init__(
        self,
        members: Sequence[Segmentor],
        *,
        weights: Sequence[float] | None = None,
        views: Views = ONE_VIEW,
        device: str = "auto",
        precision: Precision = "auto",
        compiled: bool = False,
        disagreement: bool = False,
    ) -> None:
        self.device = choose_device(device)
        self._members = [
            member.to(device=self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
            for member in members
        ]
        self.spec: InputSpec = members[0].spec
        self.num_classes = members[0].num_classes
        self.stride = math.lcm(*(member.levels[-1].stride for member in members))
        self.form: Form = "logits"
        self._dtype = choose_precision(precision, self.device)

    @torch.inference_mode()
    def __call__(self, tiles: np.ndarray) -> Tensor:
        """Scores of a batch.

        Args:
            tiles: (B, C, h, w) raw values, h and w multiples of the stride.

        Returns:
            (B, S, h, w) float32, contiguous planes, on the device.
        """
        # Raw values travel and change their layout: both are cheapest in 8 bits.
        images = torch.from_numpy(tiles).to(self.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            logits: Tensor = self._members[0](images)
        return logits.float().contiguous()


def choose_device(name: str) -> torch.device:
    """The device of that name, "auto" meaning CUDA if there is one.

    Raises:
        ConfigError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"device {name!r}: not usable here ({reason}); use cpu, cuda or auto") from error
    return device


def neutral_values(spec: InputSpec, dtype: np.dtype[Any]) -> np.ndarray:
    """Raw values (C,) that a model sees as zero: they stand in where a pixel has no data."""
    values = np.array(spec.mean) * spec.scale
    if np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        values = values.round().clip(info.min, info.max)
    return np.asarray(values.astype(dtype))


def choose_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """What the convolutions compute in.

    Raises:
        ConfigError: there is no such precision.
    """
    if precision not in ("auto", "fp32", "bf16", "fp16"):
        raise ConfigError(f"precision {precision!r}: must be auto, fp32, bf16 or fp16")
    if precision == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
        return torch.bfloat16 if device.type == "cpu" and cpu_has_bf16() else torch.float32
    if precision == "bf16" and device.type == "cpu" and not cpu_has_bf16():
        log.warning("precision bf16: this processor has no bf16 arithmetic and will be slower than with fp32")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
