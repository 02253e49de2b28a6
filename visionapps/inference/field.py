"""How far around a pixel a model looks: measured by probing it with NaN, not derived from a table of layers.

Where it looks only so far, tiles that see that much more than they draw give what the whole image would give.
Shapes: C bands, H W probe.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from visionapps.errors import ConfigError
from visionapps.segmentation.base import Segmentor

# Sides of the probe in pixels. Up to half of one is believed: beyond, and in smaller ones, the next tap of a dilated
# convolution may fall outside.
_SIDES = (2048, 4096)
_NARROW = 64  # pixels that the probe measures across, or two strides
_MUCH = 0.5  # of a layer's input unharmed and nothing of its output: in the largest probe no local layer does that
_ROUNDING = 1e-4  # of the greatest logit: what different sums of the same numbers may differ by in fp32
_STRAY = 1e-3  # share of logits that may differ by more: maxima that tie within rounding move unpooled values
_REFUSALS = (RuntimeError, ValueError, AssertionError, IndexError)  # what networks raise for a size they do not take


class Reach(NamedTuple):
    """How far a model looks."""

    pixels: int | None  # from an edge that lies on the stride, as tile edges do; None: no bound that tiling could use
    reason: str  # what was found


def reach(model: Segmentor) -> Reach:
    """Measure how far the edge of a tile disturbs what a model draws inside it.

    One stride of pixels at an end of a probe image is NaN; every logit that becomes NaN depends on it, whatever the
    weights are, since NaN times zero is NaN. All four ends are tried, and the probe grows once if that reaches beyond
    its middle. Then a random image is compared with crops of it, which finds models that look only so far but see the
    same pixels differently elsewhere (windows of attention, maps stretched from corner to corner).

    Args:
        model: stays as it is; a copy is probed on the CPU in fp32. Takes seconds, during which settings of
            PyTorch for the whole process are changed: call it before other threads compute.

    Returns:
        The reach, or None with the layer or the property that rules it out.
    """
    probed = copy.deepcopy(model).cpu().float().eval()
    with torch.no_grad(), _plain_arithmetic(), _UnpooledNowhereSure():  # type: ignore[no-untyped-call]
        farthest = 0
        for dim in (-1, -2):
            found = _reach_along(probed, dim)
            if found.pixels is None:
                return found
            farthest = max(farthest, found.pixels)
        difference = _difference(probed, farthest)
    return Reach(None, difference) if difference else Reach(farthest, f"logits depend on pixels up to {farthest} away")


def halo(model: Segmentor) -> int:
    """Pixels that a tile must see around what it draws, so that the map equals that of the whole image.

    Raises:
        ConfigError: there is no such number for this model.
    """
    found = reach(model)
    if found.pixels is None:
        raise ConfigError(
            f"exact mode is not possible for this model: {found.reason}; leave out --exact (tiles are then blended, "
            "and `visionapps seams` shows how little their borders matter), or train a model without such layers"
        )
    return found.pixels


def _reach_along(model: Segmentor, dim: int) -> Reach:
    """The reach across columns (dim -1) or rows (-2)."""
    stride = model.levels[-1].stride
    for side in _SIDES:
        side = -(-side // stride) * stride  # edges of tiles lie on the stride, so does that of the missing pixels
        distances = []
        for missing in (slice(0, stride), slice(side - stride, side)):
            try:
                harmed, culprit = _harmed(model, side, dim=dim, missing=missing)
            except _REFUSALS as error:
                return Reach(None, f"it refuses images of other sizes than it was made for ({_line(error)})")
            if not len(harmed):
                return Reach(None, "it hides missing values (NaN), so that what depends on them cannot be seen")
            distances.append(int(missing.start - harmed[0] if missing.start else harmed[-1] + 1 - missing.stop))
            if distances[-1] > side // 2:
                break
        else:
            return Reach(max(0, *distances), "")
    return Reach(None, f"{culprit} looks at the whole image" if culprit else f"it looks farther than {side // 2} px")


def _harmed(model: Segmentor, side: int, *, dim: int, missing: slice) -> tuple[Tensor, str]:
    """Which columns or rows of the logits depend on those that are missing.

    Returns:
        Their indices, and the layer that spread the harm everywhere at once, "" if none did.
    """
    image = _random_image(model, side, dim)
    image.narrow(dim, missing.start, missing.stop - missing.start).fill_(float("nan"))
    with _first_global_layer(model) as culprits:
        logits = model(image).movedim(dim, 0)
    harmed = logits.isnan().flatten(1).any(1)
    return harmed.nonzero().flatten(), culprits[0] if culprits else ""


def _difference(model: Segmentor, farthest: int) -> str:
    """Whether a crop is drawn like the whole, farther than the reach from where it was cut: "" or what is not."""
    stride = model.levels[-1].stride
    side = (-(-farthest // stride) + 12) * stride
    for dim in (-1, -2):
        image = _random_image(model, side, dim)
        whole = model(image)
        bound = _ROUNDING * float(whole.abs().max())
        for begin, end in ((stride, side), (0, side - stride)):
            crop = model(image.narrow(dim, begin, end - begin))
            sound = (begin + farthest if begin else 0, end - farthest if end < side else side)
            length = sound[1] - sound[0]
            gap = crop.narrow(dim, sound[0] - begin, length) - whole.narrow(dim, sound[0], length)
            if float((gap.abs() > bound).float().mean()) > _STRAY:
                return "it draws the same pixels differently where they stand elsewhere in the image"
    return ""


def _random_image(model: Segmentor, side: int, dim: int) -> Tensor:
    """(1, C, H, W) raw values, ``side`` long in one direction and a few strides in the other."""
    narrow = max(_NARROW, 2 * model.levels[-1].stride)
    size = (narrow, side) if dim == -1 else (side, narrow)
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, len(model.spec.bands), *size, generator=generator) * model.spec.scale


@contextmanager
def _first_global_layer(model: nn.Module) -> Iterator[list[str]]:
    """Collect the names of modules that turn a largely finite input into none, innermost and earliest first."""
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            finite = [float(t.isfinite().float().mean()) for t in _tensors(inputs)]
            if finite and min(finite) > _MUCH and not any(bool(t.isfinite().any()) for t in _tensors((output,))):
                found.append(f"{name} ({type(module).__name__})")

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


@contextmanager
def _plain_arithmetic() -> Iterator[None]:
    """Convolutions without transforms: Winograd and FFT kernels smear a NaN over their whole block."""
    onednn: Any = torch.backends.mkldnn  # its own flags() would set, and so warn about, TF32 as well
    before = onednn.enabled
    onednn.enabled = False
    try:
        with torch.backends.nnpack.flags(enabled=False):
            yield
    finally:
        onednn.enabled = before


class _UnpooledNowhereSure(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of its base's subclass hook
    """Where a maximum came from a NaN, its place is unknown: all places that it may be unpooled to become NaN."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.max_unpool2d.default:
            unsure = args[0].isnan()
            for dim in (-1, -2):
                unsure = unsure.repeat_interleave(output.shape[dim] // unsure.shape[dim], dim)
            output = output.masked_fill(unsure, float("nan"))
        return output


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
