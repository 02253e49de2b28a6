"""Learning rates: by layer, by progress of the run, with any torch optimizer."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from visionapps.classification.base import Classifier
from visionapps.detection.base import Detector
from visionapps.errors import ConfigError
from visionapps.segmentation.base import Segmentor


@dataclass(frozen=True)
class LayerRates:
    """How the learning rate and the weight decay differ between layers.

    Args:
        backbone: factor on the learning rate of the whole backbone; 0.1 is usual when few images are at hand.
        depth_decay: a further factor per block of the backbone, counted from its output; 1 is none, 0.9 is usual for
            transformers (Clark et al. 2020, ELECTRA).
        decay_norms: apply weight decay to biases and to the scales of normalisation layers as well.
        batch_lr: images per optimizer step that the optimizer's learning rate is meant for: published rates of
            detectors are for 16. A step of n images then takes the rate times n / batch_lr, images of all processes
            and of accumulated batches counted (Goyal et al. 2017; give the run a warm-up, too). None: the rate as
            it stands.
    """

    backbone: float = 1.0
    depth_decay: float = 1.0
    decay_norms: bool = False
    batch_lr: int | None = None

    def __post_init__(self) -> None:
        if self.backbone < 0 or not 0 < self.depth_decay <= 1:
            raise ConfigError(
                f"layer_rates: backbone {self.backbone} must be >= 0 and depth_decay {self.depth_decay} in (0, 1]"
            )
        if self.batch_lr is not None and self.batch_lr < 1:
            raise ConfigError(
                f"layer_rates: batch_lr {self.batch_lr} must be at least 1, the images per step that the optimizer's "
                "learning rate is meant for; or leave it out"
            )

    def factor(self, images: int) -> float:
        """The factor on the learning rate of all layers, for optimizer steps of so many images."""
        return 1.0 if self.batch_lr is None else images / self.batch_lr


def parameter_groups(
    model: Segmentor | Detector | Classifier, rates: LayerRates, images: int = 1
) -> list[dict[str, object]]:
    """Sort the parameters of a model into groups that an optimizer takes.

    Each group carries ``lr_scale``, the factor on the optimizer's learning rate (see scale_rates), and
    ``weight_decay`` 0 where none is wanted; groups without that key take the optimizer's own. Parameters that are
    fixed when the run begins are in no group.

    Args:
        model: whose backbone is called ``backbone``; of a classifier, all but the head.
        rates: how rates differ between layers.
        images: of one optimizer step; only ``batch_lr`` asks for it.
    """
    blocks = _backbone_blocks(name for name, _ in model.named_parameters())
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        block = blocks.get(_block(name))
        scale = rates.factor(images)
        if block is not None:
            scale *= rates.backbone * rates.depth_decay ** (len(blocks) - 1 - block)
        decays = parameter.ndim > 1 or rates.decay_norms
        groups.setdefault((scale, decays), []).append(parameter)
    return [
        {"params": parameters, "lr_scale": scale} | ({} if decays else {"weight_decay": 0.0})
        for (scale, decays), parameters in groups.items()
    ]


def scale_rates(optimizer: Optimizer) -> Optimizer:
    """Multiply each group's learning rate by its ``lr_scale``, in place; before any scheduler is built."""
    for group in optimizer.param_groups:
        group["lr"] *= group["lr_scale"]
    return optimizer


def _backbone_blocks(names: Iterable[str]) -> dict[str, int]:
    """Number the blocks of the backbone in the order in which it registers them, which is the order of computation."""
    blocks = dict.fromkeys(_block(name) for name in names if name.startswith(("backbone.", "network.features.")))
    return {block: i for i, block in enumerate(blocks)}


def _block(name: str) -> str:
    """``backbone.body.blocks.3.0.conv.weight`` is of ``backbone.body.blocks.3``: up to the first number."""
    parts = name.split(".")[:-1]
    number = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[: number + 1])


class Curve:
    """The factor on the learning rate as a function of the progress of the run; constant after the warm-up.

    Args:
        warmup: share of the steps in [0, 1) over which the rate rises linearly from zero.
    """

    # Not a dataclass: the parser of YAML files takes a dataclass for final and would refuse the subclasses below.
    def __init__(self, warmup: float = 0.0) -> None:
        if not 0 <= warmup < 1:
            raise ConfigError(f"learning-rate curve: warmup is a share of the run in [0, 1), not {warmup}")
        self.warmup = warmup

    def factor(self, progress: float) -> float:
        """Args: progress: share of the run that is done, in [0, 1]."""
        if progress < self.warmup:
            return progress / self.warmup
        return self.after_warmup((progress - self.warmup) / (1 - self.warmup))

    def after_warmup(self, progress: float) -> float:
        """The same, counted from the end of the warm-up."""
        return 1.0

    def scheduler(self, optimizer: Optimizer, total_steps: int) -> LambdaLR:
        """A torch scheduler that is stepped after every optimizer step."""
        # The rate of step i is taken at its middle: the first step of a warm-up is not lost to rate zero.
        return LambdaLR(optimizer, lambda step: self.factor(min(1.0, (step + 0.5) / total_steps)))


class Cosine(Curve):
    """Half a cosine from 1 to ``final`` after the warm-up. Source: Loshchilov and Hutter 2017, SGDR.

    Args:
        warmup: share of the steps in [0, 1) over which the rate rises linearly from zero.
        final: factor at the end of the run.
    """

    def __init__(self, warmup: float = 0.0, final: float = 0.0) -> None:
        super().__init__(warmup)
        self.final = final

    def after_warmup(self, progress: float) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2


class Poly(Curve):
    """(1 - progress) ** power after the warm-up. Source: Chen et al. 2018, DeepLab, power 0.9.

    Args:
        warmup: share of the steps in [0, 1) over which the rate rises linearly from zero.
        power: of the polynomial, > 0.
    """

    def __init__(self, warmup: float = 0.0, power: float = 0.9) -> None:
        super().__init__(warmup)
        self.power = power

    def after_warmup(self, progress: float) -> float:
        return float((1 - progress) ** self.power)


class CosineRestarts(Curve):
    """Half a cosine from 1 to ``final`` in each of several cycles of equal length; the first one begins with the
    warm-up.

    Args:
        cycles: how often the rate falls, at least 2.
        warmup: share of the steps in [0, 1 / cycles) over which the rate rises linearly from zero.
        final: factor at the end of each cycle.

    Source: Loshchilov and Hutter 2017, SGDR; in this form Huang et al. 2017, Snapshot Ensembles.
    """

    def __init__(self, cycles: int = 5, warmup: float = 0.0, final: float = 0.0) -> None:
        super().__init__(warmup)
        if cycles < 2 or warmup >= 1 / cycles:
            raise ConfigError(
                f"learning-rate curve: {cycles} cycles and warmup {warmup}; give 2 cycles at least, and a warmup that "
                "is shorter than one"
            )
        self.cycles = cycles
        self.final = final

    def factor(self, progress: float) -> float:
        if progress < self.warmup:
            return progress / self.warmup
        cycle = min(int(progress * self.cycles), self.cycles - 1)
        begin = max(cycle / self.cycles, self.warmup)
        share = (progress - begin) / ((cycle + 1) / self.cycles - begin)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * share)) / 2
