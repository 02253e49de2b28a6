"""Networks that torchvision and timm can build, but do not: published ones that need other arguments or a change.

Weights keep the libraries' names, but for "features." before them and "head.linear" for the last layer.
"""

from collections.abc import Sequence

from torch import nn

from visionapps.networks.base import PooledHead
from visionapps.networks.chain import Chain
from visionapps.networks.initial import he

_BOTTLENECKS_101 = (3, 4, 23, 3)


def resnet50(num_classes: int = 1000, bands: int = 3) -> Chain:
    """ResNet-50 as published: the first 1 x 1 of a stage has the stride, 3.86 billion multiply-adds.

    torchvision and timm have the stride in the 3 x 3 (4.09 billion), sometimes called version 1.5; weights fit both.

    Args:
        num_classes: K.
        bands: C of the image.

    Source: He, Zhang, Ren and Sun, Deep Residual Learning for Image Recognition, CVPR 2016, table 1, and their code.
    """
    return _resnet("resnet50", (3, 4, 6, 3), num_classes, bands, stride_first=True)


def resnet101(num_classes: int = 1000, bands: int = 3) -> Chain:
    """ResNet-101 as published. Args and source: see ``resnet50``."""
    return _resnet("resnet101", _BOTTLENECKS_101, num_classes, bands, stride_first=True)


def resnet152(num_classes: int = 1000, bands: int = 3) -> Chain:
    """ResNet-152 as published. Args and source: see ``resnet50``."""
    return _resnet("resnet152", (3, 8, 36, 3), num_classes, bands, stride_first=True)


def resnet200(num_classes: int = 1000, bands: int = 3) -> Chain:
    """ResNet-200 as published: normalisation and ReLU before each convolution.

    timm's ``resnet200`` has 200 layers too, but after the manner of ResNet-152.

    Args:
        num_classes: K.
        bands: C of the image.

    Source: He, Zhang, Ren and Sun, Identity Mappings in Deep Residual Networks, ECCV 2016, table 5 and their code.
    """
    from timm.layers import create_conv2d
    from timm.layers.norm_act import BatchNormAct2d
    from timm.models.resnetv2 import ResNetV2

    body = ResNetV2([3, 24, 36, 3], num_classes=0, in_chans=bands, norm_layer=BatchNormAct2d, conv_layer=create_conv2d)
    steps = {**dict(body.stem.named_children()), **dict(body.stages.named_children()), "norm": body.norm}
    named = {f"stage{name}" if name.isdigit() else name: step for name, step in steps.items()}
    return _chain("resnet200", named, body.num_features, num_classes, least=1)


def resnext101_2x64d(num_classes: int = 1000, bands: int = 3) -> Chain:
    """ResNeXt-101 of two groups of 64: twice the cost of ResNet-101.

    Args:
        num_classes: K.
        bands: C of the image.

    Source: Xie, Girshick, Dollar, Tu and He, Aggregated Residual Transformations for Deep Neural Networks, CVPR 2017,
        table 4.
    """
    return _resnet("resnext101_2x64d", _BOTTLENECKS_101, num_classes, bands, groups=2, width=64)


def resnet101_1x100d(num_classes: int = 1000, bands: int = 3) -> Chain:
    """ResNet-101 with bottlenecks of 100 channels for 64: what "wider" means beside ResNeXt.

    ``wide_resnet101_2`` of torchvision has 128. Args and source: see ``resnext101_2x64d``.
    """
    return _resnet("resnet101_1x100d", _BOTTLENECKS_101, num_classes, bands, width=100)


def densenet264(num_classes: int = 1000, bands: int = 3) -> Chain:
    """DenseNet-264 with 32 new channels per layer.

    timm's ``densenet264d`` is another: 48 new channels, and three convolutions in place of the first.

    Args:
        num_classes: K.
        bands: C of the image.

    Source: Huang, Liu, van der Maaten and Weinberger, Densely Connected Convolutional Networks, CVPR 2017, table 1.
    """
    from torchvision.models.densenet import DenseNet

    body = DenseNet(growth_rate=32, block_config=(6, 12, 64, 48), num_init_features=64, num_classes=1).features
    if bands != 3:
        body.conv0 = nn.Conv2d(bands, 64, 7, stride=2, padding=3, bias=False)
    steps = {**dict(body.named_children()), "relu5": nn.ReLU(inplace=True)}
    return _chain("densenet264", steps, body.norm5.num_features, num_classes, least=29)


def inception_resnet_v2(num_classes: int = 1000, bands: int = 3) -> Chain:
    """Inception-ResNet-v2 with the blocks of the paper's figure 15: 5 A, 10 B, 5 C.

    What everybody released under this name, timm's ``inception_resnet_v2`` included, has 10, 20 and 10. The blocks
    here are timm's, so their widths are those of the released code: maps of 320, 1088 and 2080 channels, where the
    figures print 384, 1154 and 2048 (which do not all fit their own parts); and the last C block ends without ReLU.

    Args:
        num_classes: K.
        bands: C of the image.

    Source: Szegedy, Ioffe, Vanhoucke and Alemi, Inception-v4, Inception-ResNet and the Impact of Residual Connections
        on Learning, AAAI 2017, section 3.
    """
    from timm.models.inception_resnet_v2 import InceptionResnetV2

    body = InceptionResnetV2(num_classes=1, in_chans=bands)
    body.repeat = body.repeat[:5]
    body.repeat_1 = body.repeat_1[:10]
    body.repeat_2 = body.repeat_2[:4]  # block8 is the fifth
    steps = {name: body.get_submodule(name) for name in body.layer_names}
    return _chain("inception_resnet_v2", steps, body.num_features, num_classes, native=299, least=75, dropout=0.2)


def _resnet(
    name: str,
    blocks: Sequence[int],
    num_classes: int,
    bands: int,
    *,
    groups: int = 1,
    width: int = 64,
    stride_first: bool = False,
) -> Chain:
    from torchvision.models.resnet import Bottleneck, ResNet

    body = ResNet(Bottleneck, list(blocks), num_classes=1, groups=groups, width_per_group=width)
    if bands != 3:
        body.conv1 = nn.Conv2d(bands, 64, 7, stride=2, padding=3, bias=False)
    if stride_first:
        for block in (body.layer2[0], body.layer3[0], body.layer4[0]):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    steps = {key: step for key, step in body.named_children() if key not in ("avgpool", "fc")}
    return _chain(name, steps, body.fc.in_features, num_classes, least=1)


def _chain(
    name: str,
    steps: dict[str, nn.Module],
    channels: int,
    num_classes: int,
    *,
    native: int = 224,
    least: int,
    dropout: float = 0.0,
) -> Chain:
    head = PooledHead(channels, num_classes, dropout=dropout)
    network = Chain(name, steps, head, native=native, least=least)
    he(network)  # none of their papers says another
    return network
