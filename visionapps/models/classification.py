"""How a network of the zoo becomes a classifier."""

from visionapps.backbones.classifiers import Pretrained, classifier_spec
from visionapps.backbones.classifiers import network as build_network
from visionapps.classification.base import Classifier
from visionapps.classification.variants import Init, Norm, initialise, replace_norms, set_dropout
from visionapps.errors import ConfigError
from visionapps.models.recipes import remember
from visionapps.structures import InputSpec


@remember
def classifier(
    network: str,
    num_classes: int,
    *,
    weights: str | None = None,
    spec: InputSpec | None = None,
    dropout: float | None = None,
    norm: Norm = "batch",
    init: Init = "paper",
    side: int | None = None,
) -> Classifier:
    """Any classification network: of timm, torchvision ("torchvision/resnet50") or here ("visionapps/vgg_c").

    Args:
        network: its name; `visionapps models` lists them.
        num_classes: K, at least 1.
        weights: package, hub, hub:TAG, a file, or random (None); loaded on request. Rows of classes are kept where
            their number, or the names of ImageNet, agree.
        spec: bands and normalisation of the input; None: those of the weights.
        dropout: of the head, in [0, 1); None: as published.
        norm: batch, layer, instance or group normalisation, where the network has batch normalisation.
        init: random weights as the network's authors draw them (paper), or by he or xavier.
        side: of the images in pixels, for transformers that must know it; None: as published.
    """
    weights = None if weights == "random" else weights
    if weights is not None and (norm != "batch" or init != "paper"):
        raise ConfigError(
            f"{network}: norm {norm} and init {init} begin from random weights, but weights {weights!r} are to be "
            "loaded; leave out one of them"
        )
    spec = spec or classifier_spec(network, weights)
    built = build_network(network, num_classes=num_classes, spec=spec, side=side)
    replace_norms(built, norm)
    initialise(built, init)
    if dropout is not None:
        set_dropout(built, dropout, where=network)
    return Classifier(built, spec, num_classes, Pretrained(network, weights) if weights is not None else None)
