"""Everything that happens to a batch of tiles on the device: raw values in, planes of scores out.

Shapes: B tiles, C bands, K classes, S score planes, h w tile.
"""

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from visionapps.errors import ConfigError
from visionapps.inference.convolution import one_kernel
from visionapps.inference.products import Form, distance
from visionapps.inference.views import ONE_VIEW, View, Views
from visionapps.runtime import cpu_has_bf16
from visionapps.segmentation.base import Segmentor
from visionapps.structures import InputSpec

Precision = Literal["auto", "fp32", "bf16", "fp16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MANY = 8  # interleaved channels from which on torch is slower than our own loop in turning them into planes
# What allocators say that raise no OutOfMemoryError.
_EXHAUSTED = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory", "out of memory", "_ALLOC_FAILED")
log = logging.getLogger(__name__)


class Network:
    """Applies one model, or several and their views, to batches of tiles. It takes the models over: moves them to the
    device and to evaluation mode.

    One model that looks once gives its logits as they are. Otherwise the scores are the weighted mean of the
    probabilities of all members and views.

    Scores do not depend on how tiles are put into batches, bit by bit. On the CPU convolutions see to that, see
    OneKernel; elsewhere kernels are chosen by the size of the batch, so small batches are filled up.

    Attributes:
        device: where everything happens.
        spec: what the members eat; where they differ in scale, mean or deviation, that of the first.
        num_classes: K.
        stride: tiles must be multiples of it, in pixels.
        form: what the first K score planes are.
        largest_batch: tiles that fit into memory at once, known since more did not; None: all so far did.
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
        """
        Args:
            members: models of the same classes and bands; each normalises for itself.
            weights: how much each member counts, relative to the others; None: all the same.
            views: how each member looks at a tile.
            device: "auto" (CUDA if there is one), or a name for torch.device.
            precision: what convolutions compute in. "auto": bf16 where the processor has it (CUDA since Ampere; CPUs
                with AVX512-BF16 or AMX, where it halves the time), fp16 on older CUDA devices, fp32 elsewhere. fp16 has
                more digits than bf16, but logits beyond 65504 overflow.
            compiled: prepare the members with torch.compile: minutes at first, then faster on most GPUs.
            disagreement: give one more plane, the weighted mean over members and views of the total variation distance
                between their probabilities and the mean: 0 where all agree, at most 1.

        Raises:
            ConfigError: the members do not fit together, the device is not there, or a setting makes no sense.
        """
        _check_members(members)
        self.device = choose_device(device)
        self._dtype = choose_precision(precision, self.device)
        self._shares = _shares(weights, len(members))
        self._views = views.all()
        self._single = len(members) * len(self._views) == 1
        if disagreement and self._single:
            raise ConfigError(
                "disagreement: one model that looks once cannot disagree; give several models, or --tta flips"
            )
        self._disagreement = disagreement
        self._members: list[Any] = [
            member.to(device=self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
            for member in members
        ]
        self._compiled = compiled
        if compiled:
            self._members = [torch.compile(member, dynamic=False) for member in self._members]
        self._fixed = compiled or self.device.type != "cpu"
        self.spec: InputSpec = members[0].spec
        self.num_classes = members[0].num_classes
        self.stride = math.lcm(*(member.levels[-1].stride for member in members))
        self.form: Form = "logits" if self._single else "probabilities"
        self.largest_batch: int | None = None

    @property
    def arithmetic(self) -> str:
        """What decides the last digits of scores, in words."""
        return f"{self.device.type} {str(self._dtype).removeprefix('torch.')}{' compiled' * self._compiled}"

    @torch.inference_mode()
    def __call__(self, tiles: np.ndarray, *, full: int = 0) -> Tensor:
        """Scores of a batch. Where memory does not suffice for it, it is halved until it does, now and from then on.

        Args:
            tiles: (B, C, h, w) raw values, h and w multiples of the stride.
            full: tiles of a full batch; where the batch size would matter, a smaller one is filled up to it.

        Returns:
            (B, S, h, w) float32, contiguous planes, on the device; S = K, and one more for the disagreement.

        Raises:
            ConfigError: not even one tile fits into memory, or the model cannot be compiled.
        """
        images = upload(tiles, self.device)
        done: list[Tensor] = []
        while (begin := sum(map(len, done))) < len(images):
            most = self.largest_batch or max(full, len(images))
            batch = images[begin : begin + most]
            try:
                done.append(self._scores(batch, min(full, most)))
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0]
            # Not in the handler: the error keeps the tensors of the failed call alive.
            self._halve(max(len(batch), min(full, most) if self._fixed else 0), batch, reason)
        return done[0] if len(done) == 1 else torch.cat(done)

    def _halve(self, tried: int, batch: Tensor, reason: str) -> None:
        height, width = batch.shape[-2:]
        if tried == 1:
            raise ConfigError(
                f"tile {height} x {width} px: {self.device} has not enough memory for a single one ({reason}); "
                "give a smaller --tile"
            )
        self.largest_batch = tried // 2
        log.warning(
            "%s has not enough memory for batches of %s tiles of %s x %s px: %s from now on",
            *(self.device, tried, height, width, self.largest_batch),
        )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _scores(self, images: Tensor, full: int) -> Tensor:
        """Scores of images that are tried at once, filled up to a full batch where its size matters."""
        count = len(images)
        if self._fixed and count < full:
            images = torch.cat([images, images[-1:].expand(full - count, -1, -1, -1)])
        images = images.contiguous(memory_format=torch.channels_last)
        scores = planes_of(self._logits(self._members[0], images)) if self._single else self._mean(images)
        return scores[:count]

    def _mean(self, images: Tensor) -> Tensor:
        """The mean of the probabilities of all members and views, and how far these are from it."""
        batch, _, height, width = images.shape
        scores = images.new_zeros(batch, self.num_classes + self._disagreement, height, width, dtype=torch.float32)
        mean = scores[:, : self.num_classes]
        opinions: list[tuple[float, Tensor]] = []
        for view in self._views:
            seen = view.apply(images.float(), stride=self.stride).contiguous(memory_format=torch.channels_last)
            total: Tensor | None = None  # of the members, as they saw the tile: turned back once, not for each
            for member, weight in zip(self._members, self._shares, strict=True):
                logits = self._logits(member, seen)
                if view.scale != 1:
                    logits = view.resize_back(logits.float(), height, width)
                share = weight / len(self._views)
                total = _add_probabilities(total, logits, share)
                if self._disagreement:  # half the memory, and still finer than 8 bits
                    opinions.append((share, _turned_back(view, _add_probabilities(None, logits, 1.0)).half()))
            assert total is not None, "there is one member at least"
            mean.add_(_turned_back(view, total))
        for share, p in opinions:
            for item, opinion in zip(scores, p, strict=True):
                item[-1].add_(distance(opinion.float(), item[:-1]), alpha=share)
        return scores

    def _logits(self, member: Any, images: Tensor) -> Tensor:
        try:
            kernels = nullcontext() if self._compiled else one_kernel(self.device, self._dtype)
            with kernels, torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
                logits: Tensor = member(images)
        except RuntimeError as error:
            home = type(error).__module__
            if not self._compiled or not home.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"--compile: torch.compile cannot prepare this model here ({reason}); leave --compile out"
            ) from error
        return logits


def _add_probabilities(total: Tensor | None, logits: Tensor, share: float) -> Tensor:
    """The sum of share times the softmax of (B, K, h, w) logits and a total, in which it is added: float32."""
    if logits.device.type != "cpu" or not _interleaved(logits) or not (total is None or _interleaved(total)):
        p = planes_of(logits).softmax(1)
        return p.mul_(share) if total is None else total.add_(p, alpha=share)
    from visionapps.inference.softmax_kernels import add_softmax  # numba takes a while to import

    logits = logits.float()
    total = torch.zeros_like(logits) if total is None else total
    values, sums = (tensor.permute(0, 2, 3, 1).reshape(-1).numpy() for tensor in (logits, total))
    add_softmax(values, np.uint64(logits.shape[1]), np.float32(share), sums)
    return total


def _turned_back(view: View, scores: Tensor) -> Tensor:
    """What a network saw of a view, at the places of the tile, as planes."""
    turned = view.turn_back(scores)
    return planes_of(turned.contiguous(memory_format=torch.channels_last) if _interleaved(scores) else turned)


def _interleaved(scores: Tensor) -> bool:
    return scores.is_contiguous(memory_format=torch.channels_last) and not scores.is_contiguous()


def planes_of(scores: Tensor) -> Tensor:
    """Scores of any layout and precision as contiguous planes: (B, S, h, w) float32; the same tensor if it is so."""
    planes = scores.shape[1]
    interleaved = _interleaved(scores)
    known = scores.dtype in (torch.float32, torch.bfloat16)
    if scores.device.type != "cpu" or planes < _MANY or not interleaved or not known:
        # First the layout, then the precision: the other way round torch takes three times as long on the CPU.
        return scores.contiguous().float()
    from visionapps.inference.kernels import separate_planes  # numba takes a while to import

    half = scores.dtype == torch.bfloat16
    result = torch.empty(scores.shape, dtype=torch.float32)
    for item, out in zip(scores.permute(0, 2, 3, 1), result, strict=True):
        bits = item.view(torch.uint16).numpy() if half else item.numpy().view(np.uint32)
        separate_planes(bits.reshape(-1, planes), np.uint32(16 * half), out.numpy().view(np.uint32).reshape(planes, -1))
    return result


def upload(tiles: np.ndarray, device: torch.device) -> Tensor:
    """Raw values on the device in their own type, pixels interleaved: both are cheapest in 8 bits.

    Args:
        tiles: (B, C, h, w) of any real dtype.
        device: where to.

    Returns:
        (B, C, h, w) in channels_last; where the device has no such type, one that holds its values.
    """
    tiles = tiles if tiles.dtype.isnative else tiles.astype(tiles.dtype.newbyteorder("="))
    if device.type == "cpu":
        return torch.from_numpy(tiles).contiguous(memory_format=torch.channels_last)
    host = torch.from_numpy(as_signed(tiles))
    if device.type == "cuda":
        host = host.pin_memory()
    elif host.dtype == torch.float64:  # unknown to MPS
        host = host.float()
    images = as_unsigned(host.to(device, non_blocking=True), tiles.dtype)
    return images.contiguous(memory_format=torch.channels_last)


def as_signed(tiles: np.ndarray) -> np.ndarray:
    """The bits of unsigned numbers as signed ones, since torch computes with the former only on the CPU."""
    if tiles.dtype == np.uint64:
        return tiles.astype(np.float64)
    return tiles.view(f"i{tiles.itemsize}") if tiles.dtype.kind == "u" and tiles.itemsize > 1 else tiles


def as_unsigned(images: Tensor, dtype: np.dtype[Any]) -> Tensor:
    """Undo ``as_signed`` in a type that holds all values; the dtype is that of the tiles."""
    if dtype == np.uint16:
        return images.to(torch.int32) & 0xFFFF
    return images.to(torch.int64) & 0xFFFFFFFF if dtype == np.uint32 else images


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


def choose_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """What convolutions compute in on a device; a warning says where that is slow.

    Raises:
        ConfigError: there is no such precision.
    """
    if precision not in get_args(Precision):
        raise ConfigError(f"precision {precision!r}: must be auto, fp32, bf16 or fp16")
    cuda, cpu = device.type == "cuda", device.type == "cpu"
    has_bf16 = (cuda and torch.cuda.get_device_capability(device) >= (8, 0)) or (cpu and cpu_has_bf16())
    if precision == "auto":
        return torch.bfloat16 if has_bf16 else torch.float16 if cuda else torch.float32
    if precision == "bf16" and (cuda or cpu) and not has_bf16:
        better = "fp16" if cuda else "fp32"
        log.warning("precision bf16: this processor has no bf16 arithmetic and will be slower than with %s", better)
    if precision == "fp16" and cpu:
        better = "bf16" if has_bf16 else "fp32"
        log.warning("precision fp16: processors compute it slowly; %s is faster here", better)
    return _DTYPES[precision]


def neutral_values(spec: InputSpec, dtype: np.dtype[Any]) -> np.ndarray:
    """Raw values (C,) that a model sees as zero: they stand in where a pixel has no data."""
    values = np.array(spec.mean) * spec.scale
    if np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        values = values.round().clip(info.min, info.max)
    return np.asarray(values.astype(dtype))


def _check_members(members: Sequence[Segmentor]) -> None:
    if not members:
        raise ConfigError("ensemble: no model; give at least one")
    first = members[0]
    for number, member in enumerate(members[1:], 2):
        if member.num_classes != first.num_classes:
            raise ConfigError(
                f"ensemble: model {number} has {member.num_classes} classes, but the first has {first.num_classes}; "
                "only models of the same classes can be averaged"
            )
        if member.spec.bands != first.spec.bands:
            raise ConfigError(
                f"ensemble: model {number} reads the bands {', '.join(member.spec.bands)}, but the first reads "
                f"{', '.join(first.spec.bands)}; only models of the same bands see the same tiles"
            )


def _shares(weights: Sequence[float] | None, members: int) -> tuple[float, ...]:
    """Weights that sum to 1."""
    given = [1.0] * members if weights is None else [float(weight) for weight in weights]
    if len(given) != members:
        raise ConfigError(f"ensemble: {len(given)} weights for {members} models; give one for each")
    if not all(0 <= weight < math.inf for weight in given) or not sum(given):
        raise ConfigError(f"ensemble: weights {given}; they must be finite and not negative, and not all 0")
    return tuple(weight / sum(given) for weight in given)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that a device has no room left."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _EXHAUSTED)
