"""A classifier at every position of an image: its head slid over the map that the features make of a larger image.

Shapes: B images, C bands, H x W pixels, D channels and h x w positions of the last map, K classes; i x j positions at
which the head fits.

Source: Sermanet et al. 2014, OverFeat, section 3.3; Simonyan and Zisserman 2015, section 3.2.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from visionapps.classification.base import Classifier
from visionapps.errors import ConfigError
from visionapps.networks.base import Network
from visionapps.networks.chain import Chain
from visionapps.networks.skipping import SkippingNetwork

_WINDOW_BYTES = 64 << 20  # of windows of a map that are held at once
_LOUD = 100.0
_TOLERANCE = 1e-3  # of the greatest logit, by which sums in another order may differ; errors of wiring are far larger


class DenseClassifier(nn.Module):
    """A classifier for images of any size from the one on that it was trained with, with the same weights.

    A head of fully connected layers becomes convolutions, or is applied to every window of the map that has the size
    of the map of a training image. A head that averages the map and ends in a linear layer is applied to every
    position. Either way an image of that size gets exactly the scores that the classifier gives it, as is checked here.

    Args:
        classifier: put into evaluation mode; its weights are shared, not copied.
        side: of the square images that it was trained with, in pixels; None: those it was published for.

    Raises:
        ConfigError: the classifier does not work on a map of positions, and why.
    """

    def __init__(self, classifier: Classifier, side: int | None = None) -> None:
        super().__init__()
        self.side = side or classifier.network.native
        self.classifier = classifier.eval()
        self.where = name_of(classifier)
        self.slid = _slide(classifier.network, len(classifier.spec.bands), self.side, self.where)

    def scores(self, image: Tensor) -> Tensor:
        """Class scores at every position where the head fits.

        Args:
            image: (B, C, H, W) raw values of any dtype.

        Returns:
            (B, K, i, j) logits: 2 x 2 of a VGG net for 256 x 256 pixels, 6 x 6 for 384 x 384.

        Raises:
            ConfigError: the image is smaller than the head, or the network, can take.
        """
        network = self.classifier.network
        if isinstance(network, Chain):
            network.demand(image)
        features = network.features(self.classifier.normalize(image))
        least = self.slid.least
        if features.shape[2] < least[0] or features.shape[3] < least[1]:
            raise ConfigError(
                f"{self.where}: {image.shape[2]} x {image.shape[3]} px give a map of {features.shape[2]} x "
                f"{features.shape[3]}, but the head needs {least[0]} x {least[1]}; the smallest legal size is "
                f"{self.side} x {self.side} px: enlarge the image"
            )
        found: Tensor = self.slid(features)
        return found.float()

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) raw to (B, K) logits: the scores averaged over all positions."""
        return self.scores(image).mean((2, 3))


class _Slid(nn.Module):
    """A head at every position of a map: (B, D, h, w) to (B, K, i, j).

    Attributes:
        least: (h, w) of the smallest map that it takes.
    """

    least: tuple[int, int] = (1, 1)


class _OwnForm(_Slid):
    """A head that knows its dense form."""

    def __init__(self, form: nn.Module, least: tuple[int, int]) -> None:
        super().__init__()
        self.form = form
        self.least = least

    def forward(self, features: Tensor) -> Tensor:
        scores: Tensor = self.form(features)
        return scores


class _Pointwise(_Slid):
    """A head that is linear in the mean of the map: its answer is the mean of its answers at single positions."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        batch, channels, height, width = features.shape
        points = features.permute(0, 2, 3, 1).reshape(-1, channels, 1, 1)
        scores: Tensor = self.head(points)
        return scores.reshape(batch, height, width, -1).permute(0, 3, 1, 2)


class _Windows(_Slid):
    """Any head, on every window of the size that it was made for."""

    def __init__(self, head: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.head = head
        self.least = size

    def forward(self, features: Tensor) -> Tensor:
        batch, channels = features.shape[:2]
        height, width = self.least
        windows = features.unfold(2, height, 1).unfold(3, width, 1)  # (B, D, i, j, h, w), a view
        down, across = windows.shape[2:4]
        at_once = max(1, _WINDOW_BYTES // (batch * channels * height * width * features.element_size()))
        places = [(i, j) for i in range(down) for j in range(across)]
        scores = []
        for start in range(0, len(places), at_once):
            part = torch.stack([windows[:, :, i, j] for i, j in places[start : start + at_once]])
            scores.append(self.head(part.flatten(0, 1)).reshape(len(part), batch, -1))
        return torch.cat(scores).permute(1, 2, 0).reshape(batch, -1, down, across)


def name_of(classifier: Classifier) -> str:
    """What messages call a classifier: the network of its recipe, or its class."""
    arguments = (classifier.recipe or {}).get("arguments", {})
    return str(arguments.get("network") or type(classifier.network).__name__)


@torch.inference_mode()
def _slide(network: Network, bands: int, side: int, where: str) -> _Slid:
    """The head of a network at every position, found and then checked by looking at what the network does."""
    if isinstance(network, SkippingNetwork):
        raise ConfigError(
            f"{where}: cannot be evaluated densely, it decides for a whole image which of its blocks to pass, and a "
            "map of all of its blocks is not what it was trained to judge by; evaluate with crops"
        )
    reference = next((p for p in network.parameters()), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, bands, side, side, generator=generator).to(reference)
    _require_map(network, image, where)
    expected = network(image)
    features = network.features(image)
    with _explained(where, "its head does not take the map of its features"):
        slid = _dense_form(network.head, features)
        found = slid(features).mean((2, 3))
    if found.shape != expected.shape or not _close(found, expected):
        raise ConfigError(
            f"{where}: cannot be evaluated densely, its answer is not that of its head on its last map (a class token, "
            "earlier exits and the like have no place on a map); evaluate with crops"
        )
    return slid


def _dense_form(head: nn.Module, features: Tensor) -> _Slid:
    size = (features.shape[2], features.shape[3])
    make = getattr(head, "dense", None)
    if callable(make):
        form = make()
        fits_everywhere = form(features).shape[2:] == size
        return _OwnForm(form, (1, 1) if fits_everywhere else size)
    pointwise = _Pointwise(head)
    try:
        # Maps of large values of both signs: near zero most nonlinear heads show as linear ones.
        probe = torch.randn(features.shape, generator=torch.Generator().manual_seed(1)).to(features) * _LOUD
        answer = head(probe)
        if answer.abs().max() > 0 and _close(pointwise(probe).mean((2, 3)), answer):  # heads may begin with zeros
            return pointwise
    except RuntimeError:  # fully connected layers take no single position
        pass
    return _Windows(head, size)


def _require_map(network: Network, image: Tensor, where: str) -> None:
    """Check, without computing anything, that the features of a wider image are a wider map."""
    tensors = {**dict(network.features.named_parameters()), **dict(network.features.named_buffers())}
    meta = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    side = image.shape[-1]
    shapes = []
    for width in (side, 2 * side):
        blank = torch.zeros(1, image.shape[1], side, width, device="meta", dtype=image.dtype)
        with _explained(where, f"its features do not take images of {side} x {width} px"):
            found = functional_call(network.features, meta, (blank,))
        if not isinstance(found, Tensor):
            raise ConfigError(
                f"{where}: cannot be evaluated densely, its features are several maps and its answer is not that "
                "of one head on the last of them; evaluate with crops"
            )
        shapes.append(tuple(found.shape))
    native, wide = shapes
    if len(native) != 4:
        raise ConfigError(
            f"{where}: cannot be evaluated densely, its features are tokens {native[1:]} and no map with rows and "
            "columns; evaluate with crops"
        )
    if wide[:3] != native[:3] or wide[3] <= native[3]:
        raise ConfigError(
            f"{where}: cannot be evaluated densely, its features make {native[1:]} of {side} x {side} px and "
            f"{wide[1:]} of {side} x {2 * side} px, which is no map (channels, rows, columns); evaluate with crops"
        )


@contextmanager
def _explained(where: str, what: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{where}: cannot be evaluated densely, {what} ({reason}); evaluate with crops") from error


def _close(found: Tensor, expected: Tensor) -> bool:
    return float((found - expected).abs().max()) <= _TOLERANCE * float(expected.abs().max())
