"""Random weights before the first step of training, by the rule that each paper gives.

All of them draw from torch's global generator, as every constructor of torch does: seed that. Biases become zero and
normalisations the identity; what is neither convolution, linear nor normalisation is left alone.
"""

import math
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

Rule = Callable[[Tensor], object]
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)


def he(network: nn.Module) -> None:
    """N(0, 2 / fan in): a layer before ReLU keeps the mean square of what enters it.

    Source: He, Zhang, Ren and Sun, Delving Deep into Rectifiers, ICCV 2015, eq. 10.
    """
    draw(network, lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"))


def xavier(network: nn.Module) -> None:
    """Uniform of variance 2 / (fan in + fan out): a linear layer keeps variances both ways, roughly.

    Source: Glorot and Bengio, Understanding the Difficulty of Training Deep Feedforward Neural Networks, AISTATS 2010,
        eq. 16.
    """
    draw(network, nn.init.xavier_uniform_)


def gaussian(network: nn.Module, std: float = 0.01) -> None:
    """N(0, std^2), whatever the layer's size: what networks had before 2014."""
    draw(network, lambda weight: nn.init.normal_(weight, std=std))


def lecun(network: nn.Module) -> None:
    """Uniform in +-2.4 / fan in.

    Source: LeCun, Bottou, Bengio and Haffner, Gradient-Based Learning Applied to Document Recognition, Proceedings of
        the IEEE 1998, appendix A.
    """

    def rule(weight: Tensor) -> None:
        bound = 2.4 / math.prod(weight.shape[1:])
        nn.init.uniform_(weight, -bound, bound)

    draw(network, rule)


def draw(network: nn.Module, rule: Rule) -> None:
    """Set the weights of every convolution and linear layer by a rule, biases to 0, normalisations to the identity.

    Args:
        network: changed in place.
        rule: (outputs, inputs, ...) weights, to be filled in place.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            rule(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, _NORMS):
            if layer.weight is not None:
                nn.init.ones_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
