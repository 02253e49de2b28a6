"""A classifier at every position of an image."""

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.vgg import VGG, make_layers

from visionapps.backbones.library_networks import LibraryNetwork
from visionapps.classification.base import Classifier
from visionapps.classification.dense import DenseClassifier
from visionapps.errors import ConfigError
from visionapps.networks.base import ConnectedHead, Network, PooledHead
from visionapps.networks.convnet_aig import convnet_aig
from visionapps.structures import InputSpec

_TINY_VGG: list[str | int] = [2, "M", 2, "M", 3, "M", 3, "M", 8, "M"]


def raw(side: int, *, width: int | None = None, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, side, width or side), generator=generator, dtype=torch.uint8)


def of(features: nn.Module, head: nn.Module, native: int, classes: int = 5) -> Classifier:
    return Classifier(LibraryNetwork(OrderedDict(body=features), head, native), InputSpec(), classes).eval()


def vgg_of_torchvision() -> VGG:
    with torch.device("meta"):  # its fully connected layers are too large for a test
        model = VGG(nn.Identity(), num_classes=5, init_weights=False)
    torch.manual_seed(0)
    model.features = make_layers(_TINY_VGG)
    model.classifier = nn.Sequential(nn.Linear(8 * 7 * 7, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 5))
    return model.eval()


def test_library_and_own_fully_connected_heads_are_the_same_dense_network() -> None:
    reference = vgg_of_torchvision()
    library = of(reference.features, nn.Sequential(reference.avgpool, nn.Flatten(), reference.classifier), 224)
    head = ConnectedHead((8, 7, 7), (16,), 5)
    linears = [layer for layer in reference.classifier if isinstance(layer, nn.Linear)]
    for own, other in zip([m for m in head.layers if isinstance(m, nn.Linear)], linears, strict=True):
        own.load_state_dict(other.state_dict())
    own_form = of(reference.features, head, 224)
    with torch.no_grad():
        native = reference(library.normalize(raw(224)))
        for model in (library, own_form):
            torch.testing.assert_close(DenseClassifier(model)(raw(224)), native)
        for side, positions in ((256, 2), (384, 6)):
            scores = [DenseClassifier(model).scores(raw(side)) for model in (library, own_form)]
            assert scores[0].shape == (1, 5, positions, positions)
            torch.testing.assert_close(scores[0], scores[1])


def test_without_padding_every_position_has_the_score_of_its_own_crop() -> None:
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 7, 2, stride=2), nn.ReLU())
    model = of(features, ConnectedHead((7, 3, 3), (9,), 5), 14)
    image = raw(26, width=22)
    with torch.no_grad():
        scores = DenseClassifier(model).scores(image)
        assert scores.shape == (1, 5, 4, 3)
        for i in range(4):
            for j in range(3):
                crop = image[:, :, 4 * i : 4 * i + 14, 4 * j : 4 * j + 14]
                torch.testing.assert_close(scores[:, :, i, j], model(crop))


@pytest.mark.parametrize(
    ("head", "positions"),
    [
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)), 10),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 9), nn.Hardswish(), nn.Linear(9, 5)), 3),
        (nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5)), 3),
        (PooledHead(6, 5), 10),
    ],
    ids=["linear in the mean", "hidden layer", "pooled to 2 x 2", "own"],
)
def test_pooled_heads_slide_by_positions_or_by_windows_of_the_native_map(head: nn.Module, positions: int) -> None:
    torch.manual_seed(0)
    model = of(nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU()), head, 16)
    dense = DenseClassifier(model)
    with torch.no_grad():
        torch.testing.assert_close(dense(raw(16, batch=2)), model(raw(16, batch=2)))
        assert dense.scores(raw(20)).shape == (1, 5, positions, positions)


def test_a_head_that_begins_with_zeros_slides_as_it_will_when_it_is_trained() -> None:
    hidden, last = nn.Linear(6, 9), nn.Linear(9, 5)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), hidden, nn.Hardswish(), last)
    model = of(nn.Conv2d(3, 6, 3, stride=2, padding=1), head, 16)
    assert DenseClassifier(model).scores(raw(20)).shape == (1, 5, 3, 3)


def test_windows_are_held_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Flatten(), nn.Linear(6 * 8 * 8, 5))
    model = of(nn.Conv2d(3, 6, 3, stride=2, padding=1), head, 16)
    dense = DenseClassifier(model)
    image = raw(30, width=26, batch=2)
    with torch.no_grad():
        whole = dense.scores(image)
        monkeypatch.setattr("visionapps.classification.dense._WINDOW_BYTES", 1)
        assert torch.equal(dense.scores(image), whole)
    assert whole.shape == (2, 5, 8, 6)


class _TwoAnswers(Network):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(OrderedDict(body=nn.Conv2d(3, 6, 3, stride=2, padding=1)))
        self.head = PooledHead(6, 5)
        self.native = 16

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image) + 1


class _Reshaped(nn.Module):
    """Features in another order than (B, D, h, w)."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.form = form

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        found = self.body(image)
        if self.form == "tokens":
            return found.flatten(2).transpose(1, 2)
        if self.form == "fixed":
            if image.shape[3] != 16:
                raise AssertionError("input width must be 16")
            return found
        return found.permute(0, 2, 3, 1) if self.form == "channels last" else (found, found)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("tokens", r"its features are tokens \(64, 6\) and no map with rows and columns; evaluate with crops"),
        (
            "channels last",
            r"its features make \(8, 8, 6\) of 16 x 16 px and \(8, 16, 6\) of 16 x 32 px, which is no map",
        ),
        ("fixed", r"its features do not take images of 16 x 32 px \(input width must be 16\); evaluate with crops"),
        ("several", "its features are several maps"),
    ],
)
def test_networks_without_a_map_say_why_they_cannot(form: str, message: str) -> None:
    network = LibraryNetwork(OrderedDict(body=_Reshaped(form)), nn.Linear(6, 5), 16)
    with pytest.raises(ConfigError, match=message):
        DenseClassifier(Classifier(network, InputSpec(), 5))


def test_an_answer_that_is_not_the_head_on_the_map_is_refused() -> None:
    with pytest.raises(ConfigError, match="its answer is not that of its head on its last map"):
        DenseClassifier(Classifier(_TwoAnswers(), InputSpec(), 5))


def test_windows_have_the_size_of_the_map_of_training_images() -> None:
    head = nn.Sequential(nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(24, 5))
    model = of(nn.Conv2d(3, 6, 3, stride=2, padding=1), head, 224)
    dense = DenseClassifier(model, 16)
    with torch.no_grad():
        torch.testing.assert_close(dense(raw(16)), model(raw(16)))
        assert dense.scores(raw(22)).shape == (1, 5, 4, 4)


def test_an_image_below_the_native_size_of_connected_layers_is_refused() -> None:
    model = of(nn.Conv2d(3, 6, 3, stride=2, padding=1), ConnectedHead((6, 8, 8), (), 5), 16)
    with pytest.raises(ConfigError, match=r"12 x 20 px give a map of 6 x 10.*smallest legal size is 16 x 16 px"):
        DenseClassifier(model).scores(raw(12, width=20))


def test_a_network_that_skips_blocks_is_refused_since_it_decides_for_whole_images() -> None:
    model = Classifier(convnet_aig(5, depth=8), InputSpec(), 5)
    with pytest.raises(ConfigError, match=r"densely, it decides for a whole image which of its blocks .* with crops"):
        DenseClassifier(model)
