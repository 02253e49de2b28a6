"""RetinaNet, held against torchvision's with the same weights."""

import math
from collections import OrderedDict

import pytest
import torch
from torch import nn

from visionapps.backbones.base import Backbone
from visionapps.boxes import Batch, Targets
from visionapps.detection.base import Limits
from visionapps.detection.fpn import FPN
from visionapps.detection.retinanet import RetinaHead, RetinaNet, retina_anchors
from visionapps.errors import ConfigError, DataError
from visionapps.inference.convolution import OneKernel
from visionapps.structures import InputSpec, Level

SIZE = 128
CLASSES = 3


class Tiny(Backbone):
    """Three maps of strides 8, 16 and 32, of one convolution each."""

    def __init__(self):
        super().__init__()
        self.spec = InputSpec(scale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        self.levels = (Level(8, 6), Level(16, 8), Level(32, 10))
        self.stages = nn.ModuleList([nn.Conv2d(3, 6, 8, 8), nn.Conv2d(6, 8, 2, 2), nn.Conv2d(8, 10, 2, 2)])

    def forward(self, image):
        maps = []
        for stage in self.stages:
            image = torch.relu(stage(image))
            maps.append(image)
        return tuple(maps)


def retina(*, group_norm=False, spread=0.0, **settings):
    torch.manual_seed(0)
    backbone = Tiny()
    neck = FPN(backbone.levels, 32, "convs_of_input")
    anchors = retina_anchors([level.stride for level in neck.levels])
    model = RetinaNet(
        backbone, neck, RetinaHead(32, anchors, CLASSES, convs=2, group_norm=group_norm), **settings
    ).eval()
    if spread:  # scores that differ enough to rank
        for layer, std in ((model.head.classes, spread), (model.head.deltas, spread)):
            nn.init.normal_(layer.weight, std=std)
        for conv in (m for tower in (model.head.class_tower, model.head.box_tower) for m in tower):
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_normal_(conv.weight)
    return model


class Features(nn.Module):
    """The same backbone and neck as torchvision wants them."""

    def __init__(self, model):
        super().__init__()
        self.backbone, self.neck, self.out_channels = model.backbone, model.neck, 32

    def forward(self, image):
        return OrderedDict((str(i), m) for i, m in enumerate(self.neck(self.backbone(image))))


def torchvisions(model, *, group_norm=False):
    from functools import partial

    from torchvision.models.detection import RetinaNet as Reference
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.retinanet import RetinaNetHead

    sizes = tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512))
    generator = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
    norm = partial(nn.GroupNorm, 32) if group_norm else None
    head = RetinaNetHead(32, 9, CLASSES, norm_layer=norm)
    limits = model.limits
    other = Reference(
        Features(model),
        CLASSES,
        min_size=SIZE,
        max_size=SIZE,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        anchor_generator=generator,
        head=head,
        score_thresh=limits.score,
        nms_thresh=limits.nms,
        detections_per_img=limits.most,
        topk_candidates=model.candidates,
    )
    for part, tower, last, theirs in (
        (other.head.classification_head, model.head.class_tower, model.head.classes, "cls_logits"),
        (other.head.regression_head, model.head.box_tower, model.head.deltas, "bbox_reg"),
    ):
        part.conv = nn.Sequential(*list(part.conv)[:2])
        ours = [m for m in tower if not isinstance(m, nn.ReLU)]
        copies = [m for block in part.conv for m in block if not isinstance(m, nn.ReLU)]
        for mine, copy in zip(ours, copies, strict=True):
            copy.load_state_dict(mine.state_dict())
        getattr(part, theirs).load_state_dict(last.state_dict())
    if model.box_loss == "giou":
        other.head.regression_head._loss_type = "giou"
    return other.eval()


def images(count=2):
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def some_targets():
    first = Targets(
        torch.tensor([[10.0, 12, 50, 60], [60, 50, 127, 120], [3, 100, 20, 118]]),
        torch.tensor([0, 2, 1]),
        torch.zeros(3, dtype=torch.bool),
    )
    return first, Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))


def batch_of(image, targets):
    count = len(image)
    sizes = ((image.shape[-2], image.shape[-1]),) * count
    return Batch(image, sizes, tuple(targets), None, tuple(range(count)), ((0, 0),) * count, (1.0,) * count)


@pytest.mark.parametrize("group_norm", [False, True])
@pytest.mark.parametrize("box_loss", ["l1", "giou"])
def test_losses_are_those_of_torchvision_also_for_an_image_without_objects(group_norm, box_loss):
    model = retina(group_norm=group_norm, spread=0.05, box_loss=box_loss, limits=Limits(most=300))
    other = torchvisions(model, group_norm=group_norm).train()
    image, targets = images(), some_targets()
    expected = other(list(image), [{"boxes": t.boxes, "labels": t.labels} for t in targets])
    losses = model.losses(batch_of(image, targets))
    torch.testing.assert_close(losses["focal"], expected["classification"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses["box"], expected["bbox_regression"], rtol=1e-5, atol=1e-6)
    assert losses["box"] > 0


@pytest.mark.parametrize("candidates", [1000, 40])
def test_detections_are_those_of_torchvision(candidates):
    model = retina(spread=0.2, limits=Limits(0.05, 0.5, 300), candidates=candidates)
    model.limits = Limits(0.05, 0.5, None)
    image = images()
    with torch.no_grad():
        found = model.detect(image, ((SIZE, SIZE),) * 2)
        model.limits = Limits(0.05, 0.5, 10**6)
        expected = torchvisions_at(model, candidates)(list(image))
    for ours, theirs in zip(found, expected, strict=True):
        # torchvision keeps what clipping has left of boxes beyond the image: lines without an inside
        boxes = theirs["boxes"]
        inside = ((boxes[:, 2:] - boxes[:, :2]) >= 1e-2).all(1)
        theirs = {name: part[inside] for name, part in theirs.items()}
        assert len(ours.scores) > 20
        torch.testing.assert_close(ours.scores, theirs["scores"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.boxes, theirs["boxes"], rtol=1e-4, atol=1e-3)
        assert torch.equal(ours.labels, theirs["labels"])


def torchvisions_at(model, candidates):
    model.candidates = candidates
    return torchvisions(model)


def test_a_bare_p6_has_the_stride_that_its_anchors_have():
    # torchvision divides the image by the map instead: 800 / 13 is 61, and the last anchors are 36 px off
    neck = FPN(Tiny().levels, 32, "convs_of_input")
    assert [level.stride for level in neck.levels] == [8, 16, 32, 64, 128]
    anchors = retina_anchors([level.stride for level in neck.levels]).boxes([(100, 100)] * 5, torch.device("cpu"))
    centres = (anchors[3].unflatten(0, (100, 100, 9))[0, :, 0, ::2]).mean(1)
    assert centres[:3].tolist() == [0.0, 64.0, 128.0]


def test_what_lies_in_an_ignored_box_is_no_background():
    model = retina(spread=0.05)
    image = images(1)
    objects = torch.tensor([[10.0, 12, 50, 60]])
    plain = Targets(objects, torch.tensor([0]), torch.tensor([False]))
    whole = torch.tensor([[-500.0, -500, 800, 800]])
    with_crowd = Targets(torch.cat([objects, whole]), torch.tensor([0, 1]), torch.tensor([False, True]))
    once = model.losses(batch_of(image, [plain]))
    spared = model.losses(batch_of(image, [with_crowd]))
    assert torch.equal(once["box"], spared["box"])
    # by hand: what is left are the anchors of the object
    output = model._output(image, ((SIZE, SIZE),))
    states = model.matcher.states(output.anchors, objects, objects[:0])
    logits = output.logits[0][states == 1]
    p = logits.double().sigmoid()
    expected = (-0.25 * (1 - p[:, 0]) ** 2 * p[:, 0].log()).sum()
    expected += (-0.75 * p[:, 1:] ** 2 * (1 - p[:, 1:]).log()).sum()
    assert spared["focal"].item() == pytest.approx(expected.item() / int((states == 1).sum()), rel=1e-5)
    assert spared["focal"] < once["focal"]


def test_detections_do_not_depend_on_the_neighbours_in_the_batch():
    model = retina(spread=0.2)
    image = images(3)
    sizes = ((SIZE, SIZE), (90, 128), (128, 77))
    with torch.no_grad(), OneKernel():
        together = model.detect(image, sizes)
        alone = [model.detect(image[i : i + 1], sizes[i : i + 1])[0] for i in range(3)]
    for one, other, (h, w) in zip(together, alone, sizes, strict=True):
        assert len(one.scores) > 10
        for a, b in zip(one[:3], other[:3], strict=True):
            assert torch.equal(a, b)
        assert one.boxes[:, 2].max() <= w
        assert one.boxes[:, 3].max() <= h


def test_judge_gives_what_losses_and_detect_give():
    model = retina(spread=0.2)
    batch = batch_of(images(), some_targets())
    with torch.no_grad():
        terms, found = model.judge(batch)
        expected, apart = model.losses(batch), model.detect(batch.image, batch.sizes)
    assert {k: v.item() for k, v in terms.items()} == {k: v.item() for k, v in expected.items()}
    assert all(torch.equal(a.boxes, b.boxes) for a, b in zip(found, apart, strict=True))


def test_bf16_finds_nearly_the_same():
    model = retina(spread=0.2)
    image = images(1)
    with torch.no_grad():
        full = model.detect(image, ((SIZE, SIZE),))[0]
        model.compute = torch.bfloat16
        half = model.detect(image, ((SIZE, SIZE),))[0]
    assert half.boxes.dtype == half.scores.dtype == torch.float32
    assert not torch.equal(full.scores[:10], half.scores[:10])
    torch.testing.assert_close(full.scores[:10], half.scores[:10], rtol=0.05, atol=0.02)


def test_a_tiny_model_learns_one_object():
    model = retina()
    image = torch.zeros(1, 3, SIZE, SIZE)
    image[:, :, 32:80, 40:88] = 1
    target = Targets(torch.tensor([[40.0, 32, 88, 80]]), torch.tensor([1]), torch.tensor([False]))
    batch = batch_of(image, [target])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        loss = sum(model.losses(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = model.detect(image, ((SIZE, SIZE),))[0]
    assert found.labels[0] == 1
    assert found.scores[0] > 0.5
    assert (found.boxes[0] - target.boxes[0]).abs().max() < 4


def test_the_first_score_of_every_anchor_is_one_in_a_hundred():
    output = retina()._output(images(1), ((SIZE, SIZE),))
    assert output.logits.sigmoid().mean().item() == pytest.approx(0.01, rel=0.1)


def test_more_detections_than_candidates_are_given_where_the_limits_ask_for_them():
    model = retina(spread=0.2, candidates=5, limits=Limits(0.0, 1.0, None))
    image = images(1)
    with torch.no_grad():
        few = model.detect(image, ((SIZE, SIZE),))[0]
        model.limits = Limits(0.0, 1.0, 60)
        many = model.detect(image, ((SIZE, SIZE),))[0]
    assert len(few.scores) <= 5 * 5
    assert len(many.scores) == 60


def test_impossible_parts_are_refused_by_name():
    backbone = Tiny()
    neck = FPN(backbone.levels, 32, "convs")
    head = RetinaHead(32, retina_anchors((8, 16, 32)), CLASSES)
    with pytest.raises(ConfigError, match=r"a head of strides \(8, 16, 32\) and 32 channels on levels"):
        RetinaNet(backbone, neck, head)
    good = RetinaHead(32, retina_anchors((8, 16, 32, 64, 128)), CLASSES)
    with pytest.raises(ConfigError, match="box_loss 'l2' must be l1 or giou"):
        RetinaNet(backbone, neck, good, box_loss="l2")
    with pytest.raises(ConfigError, match="group_norm needs channels in multiples of 32, not 24"):
        RetinaHead(24, retina_anchors((8, 16)), CLASSES, group_norm=True)


def test_a_label_beyond_the_classes_is_refused_before_any_kernel():
    bad = Targets(torch.tensor([[1.0, 1, 9, 9]]), torch.tensor([CLASSES]), torch.tensor([False]))
    with pytest.raises(DataError, match=r"image 0 of the batch, object 0: label 3, but the model has 3 classes"):
        retina().losses(batch_of(images(1), [bad]))


@pytest.mark.parametrize("size", [(1, 1), (7, 300)])
def test_images_of_any_size_go_through(size):
    model = retina(spread=0.2)
    with torch.no_grad():
        (found,) = model.detect(torch.rand(1, 3, *size), (size,))
    assert torch.isfinite(found.boxes).all()
    empty = some_targets()[1]
    assert all(math.isfinite(v.item()) for v in model.losses(batch_of(torch.rand(1, 3, *size), [empty])).values())
