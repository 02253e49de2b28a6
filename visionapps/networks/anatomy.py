"""The layers of any network, as they run: size, memory, parameters, multiply-adds and receptive field of each.

The network computes one image on PyTorch's meta device, which has shapes but no numbers, and every operation is seen on
its way: nothing is read off names or classes, so that branches, functional calls and shared layers are counted right.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from visionapps.errors import ConfigError
from visionapps.networks.fields import Trace, of_image, propagate
from visionapps.networks.kinds import MINOR, kind_of, name_of

BYTES = 4  # of a number in single precision


class Layer(NamedTuple):
    """One call of a layer, or one operation between layers.

    Memory is what a layer hands on in fresh numbers: none where it works in place, or only looks at its input anew.
    """

    name: str  # of the module; of the module that computes for what stands between its layers
    kind: str  # "conv 3x3/2", "add", "BatchNorm2d"
    output: tuple[int, ...]  # without the axis of the batch, of one image
    memory: int  # numbers
    parameters: int  # that no layer before it used
    multiply_adds: int
    trace: Trace | None  # what its output depends on; None: not on the image

    @property
    def field(self) -> tuple[int, int] | None:
        """Rows and columns of the image that one value sees; None where that is unknown (attention in windows)."""
        if self.trace is None or self.trace.windows:
            return None
        rows, cols = (-(-one.size // 1) for one in self.trace.fields)
        return int(rows), int(cols)

    @property
    def stride(self) -> Fraction | None:
        """Pixels of the image from value to value along rows; None where the image's frame is left."""
        if self.trace is None or self.trace.size == (1, 1):
            return None
        return self.trace.fields[0].jump


@dataclass(frozen=True)
class Anatomy:
    """A network, layer by layer.

    Attributes:
        shape: (C, H, W) of the image.
        layers: in the order in which they run.
        parameters: of the whole network.
        unused: of them, those that this run did not touch: of classifiers that only training needs, for instance.
        depth: weight layers (convolutions and linear ones) on the longest path from image to output.
        depth_with_pooling: the same with poolings counted.
    """

    shape: tuple[int, int, int]
    layers: tuple[Layer, ...]
    parameters: int
    unused: int
    depth: int
    depth_with_pooling: int

    @property
    def multiply_adds(self) -> int:
        return sum(layer.multiply_adds for layer in self.layers)

    @property
    def memory(self) -> int:
        """Numbers that one image takes on its way, itself included; four bytes each in single precision."""
        return self.shape[0] * self.shape[1] * self.shape[2] + sum(layer.memory for layer in self.layers)


def anatomy(module: nn.Module, shape: tuple[int, int, int]) -> Anatomy:
    """Take a network apart.

    Multiply-adds are those of convolutions, linear layers and products of matrices, as PyTorch's own counter has them
    (half its count); what is added, scaled or pooled is not counted. Statistics of group and instance normalisation
    see the whole map, but do not widen the receptive fields told here.

    Args:
        module: takes a (B, C, H, W) image. It is run as in evaluation and stays as it is, wherever its weights lie.
        shape: (C, H, W) of the image.

    Raises:
        ConfigError: it does not take such an image, or computes with values, which the meta device does not have.
    """
    if min(shape) < 1:
        raise ConfigError(f"image: {'x'.join(map(str, shape))} (CxHxW) is empty; give at least one band and pixel")
    image = torch.empty(1, *shape, device="meta")
    with _sketched(module) as state, torch.inference_mode(), ExitStack() as stack:
        recorder = _Recorder(module, image, state)
        stack.callback(recorder.forget)
        try:
            with recorder:
                output = torch.func.functional_call(module, state, (image,))
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError, NotImplementedError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"{type(module).__name__}: cannot be run on an image of {'x'.join(map(str, shape))} (CxHxW): {reason}; "
                "give the size and bands that it was made for"
            ) from error
        ends = [t for t in map(recorder.trace, _tensors(output)) if t is not None]
    total = sum(p.numel() for p in module.parameters())
    return Anatomy(
        shape,
        tuple(recorder.layers),
        total,
        total - sum(layer.parameters for layer in recorder.layers),
        max((t.layers for t in ends), default=0),
        max((t.steps for t in ends), default=0),
    )


@contextmanager
def _sketched(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The network in evaluation, and what to compute with in place of its parameters and buffers."""
    modes = {part: part.training for part in module.modules()}
    state: dict[str, Tensor] = {}
    twins: dict[int, Tensor] = {}  # of tensors that are shared
    for name, tensor in [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]:
        kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
        twin = torch.empty_like(tensor, dtype=kind, device="meta", requires_grad=False)
        state[name] = twins.setdefault(id(tensor), twin)
    module.eval()
    try:
        yield state
    finally:
        for part, training in modes.items():
            part.training = training


@dataclass
class _Call:
    """A module that is computing."""

    name: str
    kind: str
    leaf: bool
    inputs: frozenset[int] = frozenset()  # storages
    multiply_adds: int = 0
    parameters: int = 0
    kinds: list[str] = field(default_factory=list)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of its base's subclass hook
    """Sees every operation and every call of a module."""

    def __init__(self, module: nn.Module, image: Tensor, state: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers: list[Layer] = []
        self._known: dict[int, tuple[Tensor, Trace]] = {}  # by id; the tensors are kept so that ids stay theirs
        self._remember(image, of_image(int(image.shape[2]), int(image.shape[3])))
        owned = {name for name, _ in module.named_parameters(remove_duplicate=False)}
        self._fresh = {id(t): t.numel() for name, t in state.items() if name in owned}
        self._calls = [_Call("", type(module).__name__, leaf=False)]
        self._hooks = [
            hook
            for name, part in module.named_modules()
            for hook in (
                part.register_forward_pre_hook(self._enter(name, part), with_kwargs=True),
                part.register_forward_hook(self._leave),
            )
        ]

    def forget(self) -> None:
        """Leave the network without hooks."""
        for hook in self._hooks:
            hook.remove()

    def trace(self, tensor: Tensor) -> Trace | None:
        """What a tensor depends on."""
        found = self._known.get(id(tensor))
        return found[1] if found else None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func._overloadpacket not in flop_registry and func is not torch.ops.prim.device.default:
            with self:  # in inference mode, composed operations arrive whole
                output = func.decompose(*args, **kwargs)
                if output is not NotImplemented:
                    return output
        output = func(*args, **kwargs)
        self._record(func, args, kwargs, output)
        return output

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        inputs, results = list(_tensors((args, kwargs))), list(_tensors((output,)))
        if not results:
            return
        name, call = name_of(func), self._calls[-1]
        used = sum(self._fresh.pop(id(t), 0) for t in inputs)
        call.parameters += used
        traces = [self.trace(t) for t in inputs]
        trace = None
        if any(t is not None for t in traces):
            trace = propagate(name, args, results[0], traces)
            for result in results:
                if result.ndim == results[0].ndim:
                    self._remember(result, trace)
        counted = flop_registry.get(func._overloadpacket)
        multiply_adds = counted(*args, **kwargs, out_val=output) // 2 if counted else 0
        kind = kind_of(name, args)
        if call.leaf:
            call.multiply_adds += multiply_adds
            call.kinds.append(kind)
        elif multiply_adds or (trace is not None and name not in MINOR):
            storages = {_storage(t) for t in inputs}
            self._add(call.name, kind, results[0], storages, multiply_adds, call)

    def _add(self, name: str, kind: str, result: Tensor, inputs: Any, multiply_adds: int, call: _Call) -> None:
        memory = 0 if _storage(result) in inputs else result.numel()
        sides = [int(n) for n in result.shape]
        shape = tuple(sides[1:] if sides[:1] == [1] else sides)
        self.layers.append(Layer(name, kind, shape, memory, call.parameters, multiply_adds, self.trace(result)))
        call.parameters = 0

    def _enter(self, name: str, part: nn.Module) -> Any:
        leaf = not any(True for _ in part.children())
        kind = type(part).__name__

        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            above = self._calls[-1]
            storages = frozenset(_storage(t) for t in _tensors((args, kwargs)))
            self._calls.append(above if above.leaf else _Call(name, kind, leaf, storages))

        return hook

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        call = self._calls.pop()
        if call is self._calls[-1]:
            return
        results = list(_tensors((output,)))
        if call.leaf and call.kinds and results:
            kind = next((k for k in call.kinds if k.startswith(("conv", "deconv"))), call.kind)
            if len(call.kinds) == 1 and "pool" in call.kinds[0]:
                kind = call.kinds[0]
            self._add(call.name, kind, results[0], call.inputs, call.multiply_adds, call)
        elif call.parameters:  # used by what is too small for a line of its own
            self._calls[-1].parameters += call.parameters

    def _remember(self, tensor: Tensor, trace: Trace) -> None:
        self._known[id(tensor)] = (tensor, trace)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _tensors(value)
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _tensors(value)
