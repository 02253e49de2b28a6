"""SPPnet: pyramids of bins against numpy loops, fixed features, scales."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from visionapps.backbones.base import Backbone
from visionapps.boxes import Batch, Targets
from visionapps.detection.fpn import FPN, SingleLevel
from visionapps.detection.pooling import RoIPooler
from visionapps.detection.roi import BoxHead, RoIHeads
from visionapps.detection.sppnet import PyramidHead, PyramidPooler, SpatialPyramidPooling, SPPNet, _scaled
from visionapps.errors import ConfigError, DataError
from visionapps.inference.convolution import OneKernel
from visionapps.structures import InputSpec, Level

CHANNELS, CLASSES = 4, 2


class Tiny(Backbone):
    """One map of stride 16, with a batch norm that would learn if it were allowed to."""

    def __init__(self):
        super().__init__()
        self.spec = InputSpec(scale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self.levels = (Level(16, CHANNELS),)
        self.body = nn.Sequential(nn.Conv2d(3, CHANNELS, 16, 16), nn.BatchNorm2d(CHANNELS), nn.ReLU())

    def forward(self, image):
        return (self.body(image),)


def sppnet(*, scales=None, bins=(1, 2, 3), dropout=0.5):
    torch.manual_seed(0)
    backbone = Tiny()
    pooler = PyramidPooler(16, CHANNELS, bins, scales=scales)
    heads = RoIHeads(pooler, PyramidHead(pooler.width, 32, dropout=dropout), CLASSES)
    nn.init.normal_(heads.classes.weight, std=0.5)
    return SPPNet(backbone, SingleLevel(backbone.levels, 16), heads)


def batch_of(image, sizes, boxes, proposals):
    count = len(image)
    labels = [torch.zeros(len(b), dtype=torch.int64) for b in boxes]
    targets = tuple(Targets(b, n, torch.zeros(len(b), dtype=torch.bool)) for b, n in zip(boxes, labels, strict=True))
    return Batch(image, sizes, targets, tuple(proposals), tuple(range(count)), ((0, 0),) * count, (1.0,) * count)


def loop_pyramid(feature, bins):
    """(C, H, W) to (C * N,): the bins of the paper, one by one."""
    channels, height, width = feature.shape
    values = []
    for n in bins:
        for c in range(channels):
            for i in range(n):
                for j in range(n):
                    rows = slice(math.floor(i * height / n), math.ceil((i + 1) * height / n))
                    cols = slice(math.floor(j * width / n), math.ceil((j + 1) * width / n))
                    values.append(feature[c, rows, cols].max())
    return np.array(values)


@given(st.integers(1, 15), st.integers(1, 15), st.lists(st.integers(1, 7), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_a_map_of_any_size_becomes_a_vector_of_one_length(height, width, bins):
    feature = np.random.default_rng(height * 16 + width).normal(size=(2, 3, height, width)).astype(np.float32)
    pooled = SpatialPyramidPooling(bins)(torch.from_numpy(feature)).numpy()
    assert pooled.shape == (2, 3 * sum(n * n for n in bins))
    for row, each in zip(pooled, feature, strict=True):
        assert np.array_equal(row, loop_pyramid(each, bins))


def test_the_paper_has_fifty_bins():
    assert SpatialPyramidPooling()(torch.zeros(1, 2, 13, 13)).shape == (1, 100)
    assert PyramidPooler(16, 256).width == 12800


def loop_window(feature, box, stride, bins):
    """RoI max pooling as Girshick's code has it: corners rounded to positions, at least one position wide."""
    x0, y0, x1, y1 = (math.floor(abs(v) / stride + 0.5) for v in box)
    height, width = max(y1 - y0 + 1, 1), max(x1 - x0 + 1, 1)
    values = []
    for n in bins:
        for c in range(len(feature)):
            for i in range(n):
                for j in range(n):
                    top, bottom = math.floor(i * height / n) + y0, math.ceil((i + 1) * height / n) + y0
                    left, right = math.floor(j * width / n) + x0, math.ceil((j + 1) * width / n) + x0
                    part = feature[c, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
                    values.append(part.max() if part.size else 0.0)
    return np.array(values)


def test_windows_are_pooled_as_a_loop_does_it():
    feature = torch.randn(2, CHANNELS, 9, 12, generator=torch.Generator().manual_seed(0))
    proposals = [
        torch.tensor([[0.0, 0, 192, 144], [17, 30, 100, 90], [50, 50, 51, 51]]),
        torch.tensor([[160.0, 100, 192, 144]]),
    ]
    pooler = PyramidPooler(16, CHANNELS, (1, 2, 3, 6))
    pooled = pooler([feature], proposals, [(144, 192)] * 2)
    assert pooled.shape == (4, pooler.width)
    images = [0, 0, 0, 1]
    for row, image, box in zip(pooled.numpy(), images, torch.cat(proposals).tolist(), strict=True):
        assert np.array_equal(row, loop_window(feature[image].numpy(), box, 16, (1, 2, 3, 6)).astype(np.float32))


def test_no_windows_at_all_give_no_rows():
    for scales in (None, (64, 96)):
        pooler = PyramidPooler(16, CHANNELS, scales=scales)
        maps = [torch.zeros(1, CHANNELS, 4, 4)] * len(scales or (1,))
        assert pooler(maps, [torch.zeros(0, 4)], [(64, 64)]).shape == (0, pooler.width)


def test_a_window_is_pooled_at_the_scale_where_its_area_is_nearest_to_224_squared():
    pooler = PyramidPooler(16, 1, (1,), scales=(100, 200, 400))
    # an image of 100 x 100: scaled by 1, 2 and 4; the map of each scale says which it is
    maps = [torch.full((1, 1, s // 16 + 1, s // 16 + 1), float(s)) for s in (100, 200, 400)]
    boxes = torch.tensor([[0.0, 0, 100, 100], [0, 0, 60, 60], [10, 10, 20, 20], [0, 0, 79, 100]])
    # areas at the scales: 10000 40000 160000 | 3600 14400 57600 | all small: the largest | 7900 31600 126400
    assert pooler(maps, [boxes], [(100, 100)])[:, 0].tolist() == [200.0, 400.0, 400.0, 200.0]


def test_features_are_fixed_in_training_and_only_the_head_learns():
    model = sppnet().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    image = torch.rand(2, 3, 64, 96)
    boxes = [torch.tensor([[10.0, 10, 40, 40]]), torch.zeros(0, 4)]
    proposals = [torch.tensor([[8.0, 8, 40, 44], [50, 5, 90, 60]]), torch.tensor([[0.0, 0, 30, 30]])]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    terms = model.losses(batch_of(image, ((64, 96), (60, 90)), boxes, proposals))
    sum(terms.values()).backward()
    optimizer.step()
    assert set(terms) == {"roi_class", "roi_box"}
    assert not model.backbone.training
    for name, tensor in model.state_dict().items():
        if name.startswith("backbone."):
            assert torch.equal(tensor, before[name]), name
    learned = {n.split(".")[1] for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert learned == {"head", "classes", "deltas"}


def test_dropout_is_for_training_alone():
    model = sppnet().eval()
    blocks = torch.rand(5, model.roi_heads.pooler.width)
    assert torch.equal(model.roi_heads.head(blocks), model.roi_heads.head(blocks))
    model.train()
    assert not torch.equal(model.roi_heads.head(blocks), model.roi_heads.head(blocks))


@pytest.mark.parametrize("scales", [None, (48, 96)])
def test_detections_do_not_depend_on_the_neighbours_in_the_batch(scales):
    model = sppnet(scales=scales).eval()
    image = torch.rand(3, 3, 80, 96, generator=torch.Generator().manual_seed(2))
    sizes = ((80, 96), (50, 96), (80, 33))
    proposals = tuple(torch.tensor([[0.0, 0, w, h], [3, 5, w / 2, h / 2], [w / 3, h / 3, w, h]]) for h, w in sizes)
    with torch.no_grad(), OneKernel():
        together = model.detect(image, sizes, proposals)
        alone = [model.detect(image[i : i + 1], sizes[i : i + 1], proposals[i : i + 1])[0] for i in range(3)]
    for one, other in zip(together, alone, strict=True):
        assert len(one.scores)
        for a, b in zip(one[:3], other[:3], strict=True):
            assert torch.equal(a, b)


def test_several_scales_see_what_one_scale_sees_in_the_scaled_image():
    model = sppnet(scales=(64,)).eval()
    image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(3))
    (feature,) = model._features(image, ((32, 48),))
    doubled = nn.functional.interpolate(image, (64, 96), mode="bilinear", antialias=True, align_corners=False)
    assert torch.equal(feature, model.backbone(doubled)[0])
    pooled = model.roi_heads.pooler([feature], [torch.tensor([[8.0, 4, 24, 20]])], [(32, 48)])
    expected = PyramidPooler(16, CHANNELS, (1, 2, 3))([feature], [torch.tensor([[16.0, 8, 48, 40]])], [(64, 96)])
    assert torch.equal(pooled, expected)


def test_judge_gives_losses_and_detections():
    model = sppnet().eval()
    batch = batch_of(
        torch.rand(1, 3, 64, 64), ((64, 64),), [torch.tensor([[5.0, 5, 30, 30]])], [torch.tensor([[4.0, 4, 30, 31]])]
    )
    with torch.no_grad():
        terms, found = model.judge(batch)
    assert all(math.isfinite(v.item()) for v in terms.values())
    assert torch.equal(found[0].boxes, model.detect(batch.image, batch.sizes, batch.proposals)[0].boxes)


def test_a_model_without_proposals_says_where_they_come_from():
    model = sppnet().eval()
    assert model.needs_proposals
    with pytest.raises(DataError, match="`visionapps proposals` makes one"):
        model.detect(torch.rand(1, 3, 32, 32), ((32, 32),))


def test_parts_that_would_learn_or_pool_otherwise_are_refused():
    backbone = Tiny()
    pooler = PyramidPooler(16, CHANNELS)
    heads = RoIHeads(pooler, PyramidHead(pooler.width, 8), CLASSES)
    with pytest.raises(ConfigError, match="the neck is a FPN and the pooler a PyramidPooler"):
        SPPNet(backbone, FPN(backbone.levels, CHANNELS), heads)
    other = RoIHeads(RoIPooler((16,), 7), BoxHead(CHANNELS, 7, 8), CLASSES)
    with pytest.raises(ConfigError, match="the pooler a RoIPooler; take SingleLevel and PyramidPooler"):
        SPPNet(backbone, SingleLevel(backbone.levels, 16), other)
    wrong = PyramidPooler(8, CHANNELS)
    with pytest.raises(ConfigError, match=r"roi pooler of strides \(8,\)"):
        SPPNet(backbone, SingleLevel(backbone.levels, 16), RoIHeads(wrong, PyramidHead(wrong.width, 8), CLASSES))
    with pytest.raises(ConfigError, match=r"bins \(0, 2\) must be whole numbers from 1 on"):
        SpatialPyramidPooling((0, 2))
    with pytest.raises(ConfigError, match="scales \\(\\) none at all"):
        PyramidPooler(16, 4, scales=())
    with pytest.raises(ConfigError, match=r"dropout 1.0 in \[0, 1\)"):
        PyramidHead(10, 10, dropout=1.0)


def test_a_strip_is_not_enlarged_beyond_all_memory():
    assert _scaled((480, 640), 1200) == (1200, 1600)
    assert _scaled((40, 30000), 1200) == (40, 30000)
    assert _scaled((100, 1000), 1200) == (300, 3000)


def test_layers_that_would_have_to_learn_are_refused_in_fixed_features():
    backbone = Tiny()
    backbone.fresh = (backbone.body[0],)
    pooler = PyramidPooler(16, CHANNELS)
    heads = RoIHeads(pooler, PyramidHead(pooler.width, 8), CLASSES)
    with pytest.raises(ConfigError, match="begin with random numbers and would never learn"):
        SPPNet(backbone, SingleLevel(backbone.levels, 16), heads)
