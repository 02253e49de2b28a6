"""Detectors by name: what each is made of, how it is built again, what it refuses, and that it runs on real photos."""

import inspect
import json

import numpy as np
import pytest
import torch

from visionapps.backbones.norms import FrozenBatchNorm
from visionapps.boxes import Batch, Targets
from visionapps.detection.base import Limits
from visionapps.errors import ConfigError
from visionapps.models import (
    DETECTORS,
    build,
    fast_rcnn_2015,
    faster_rcnn,
    faster_rcnn_2015,
    mask_rcnn,
    retinanet,
    sppnet,
    sppnet_2014,
    torchvision_detector,
)
from visionapps.models.options import Features, Proposing, Pyramids, Regions, RetinaOptions

SIZES = ((64, 96), (50, 90))


def batch(bands=3):
    boxes = torch.tensor([[4.0, 4, 40, 40], [20, 10, 60, 50]])
    images = torch.randint(0, 256, (2, bands, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    masks = [torch.ones(2, *size, dtype=torch.uint8) for size in SIZES]
    targets = tuple(Targets(boxes, torch.tensor([0, 1]), torch.zeros(2, dtype=torch.bool), each) for each in masks)
    return Batch(images, SIZES, targets, (boxes + 2, boxes[:1] - 2), (0, 1), ((0, 0),) * 2, (1.0, 1.0))


@pytest.mark.parametrize(
    ("name", "backbone", "options"),
    [
        ("faster_rcnn", "mobilenetv3_small_050", {}),
        ("faster_rcnn", "test_vit", {"features": Features(channels=32), "regions": Regions(hidden=32)}),
        ("faster_rcnn", "resnet10t", {"features": Features("single"), "regions": Regions(pool="max", hidden=32)}),
        (
            "mask_rcnn",
            "torchvision/mobilenet_v3_small",
            {"regions": Regions(size=4, head="conv", hidden=32, sampled=16, limits=Limits(most=5))},
        ),
        ("fast_rcnn", "convnext_atto", {"regions": Regions(background=(0.1, 0.5), limits=Limits(nms=0.3))}),
        ("sppnet", "resnet10t", {"pyramids": Pyramids((1, 2), (64, 96), 32, 0.1)}),
        ("retinanet", "mobilenetv3_small_050", {"head": RetinaOptions("pool", 2.0, 1, False, "giou")}),
    ],
)
def test_every_kind_learns_finds_and_is_built_again_from_its_recipe(name, backbone, options):
    model = DETECTORS[name](backbone, 3, **options)
    sum(model.losses(batch()).values()).backward()
    silent = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert silent == []
    model.eval()
    recipe = json.loads(json.dumps(model.recipe))
    again = build(recipe).eval()
    assert again.recipe == recipe
    again.load_state_dict(model.state_dict())
    data = batch()
    with torch.no_grad():
        first, second = (m.detect(data.image, SIZES, data.proposals) for m in (model, again))
    assert all(torch.equal(a.boxes, b.boxes) for a, b in zip(first, second, strict=True))
    assert again.limits == model.limits


def test_anchors_and_poolers_follow_the_true_strides_of_the_backbone():
    with torch.device("meta"):
        usual = faster_rcnn("resnet18", 1)
        patches = mask_rcnn("vit_small_patch14_dinov2", 1)
        single = faster_rcnn("resnet18", 1, features=Features("single", strides=(8,)))
        fine = retinanet("resnet18", 1, features=Features(strides=(4, 8, 16)), head=RetinaOptions(per_stride=2))
    assert usual.rpn.anchors.strides == (4, 8, 16, 32, 64)
    assert usual.rpn.anchors.sizes == ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
    assert usual.roi_heads.pooler.strides == (4, 8, 16, 32)
    assert patches.rpn.anchors.strides == (7, 14, 28, 56)
    assert patches.rpn.anchors.sizes == ((56.0,), (112.0,), (224.0,), (448.0,))
    assert (patches.rpn.anchors.offset, usual.rpn.anchors.offset) == (0.5, 0.0)
    assert (patches.roi_heads.pooler.aligned, usual.roi_heads.pooler.aligned) == (True, False)
    assert patches.mask_head.pooler.strides == (7, 14, 28)
    assert single.rpn.anchors.sizes == ((32.0, 64.0, 128.0, 256.0, 512.0),)
    assert [level.stride for level in fine.neck.levels] == [4, 8, 16, 32, 64]
    assert fine.head.anchors.sizes[0] == (8.0, 10.0, 12.0)


def test_settings_of_the_papers_are_what_the_papers_say():
    with torch.device("meta"):
        faster, fast, spp = (wire("vgg16", 20) for wire in (faster_rcnn_2015, fast_rcnn_2015, sppnet_2014))
    # 137,073,622 is with a box for background, of which nobody asks where it is.
    background = 4 * 4096 + 4
    assert sum(p.numel() for p in faster.parameters()) == 137_073_622 - background
    assert [tuple(level) for level in faster.neck.levels] == [(16, 512)]
    assert faster.rpn.anchors.per_position == 9
    assert (faster.roi_heads.pooler.how, faster.roi_heads.pooler.size) == ("max", 7)
    assert faster.roi_heads.matcher.negative == (0.1, 0.5)
    assert (faster.limits.nms, faster.roi_heads.sampler.size, fast.roi_heads.sampler.size) == (0.3, 128, 64)
    assert (faster.rpn.limits.before, faster.rpn.limits.after) == ((12000, 6000), (2000, 300))
    assert (fast.rpn, fast.needs_proposals, spp.needs_proposals) == (None, True, True)
    assert spp.roi_heads.pooler.width == 512 * 50
    assert spp.scales == (480, 576, 688, 864, 1200)


def test_norms_are_frozen_only_where_they_come_with_weights(tmp_path):
    def frozen(**options):
        with torch.device("meta"):
            model = faster_rcnn("resnet18", 2, **options)
        return sum(isinstance(m, FrozenBatchNorm) for m in model.modules())

    assert frozen() == 0
    assert frozen(weights="random") == 0
    assert frozen(weights=str(tmp_path / "any.pth")) == 20 - 3 + 3  # a ResNet-18 has 20, three of them in shortcuts
    assert frozen(weights=str(tmp_path / "any.pth"), features=Features(norms="trained")) == 0
    batch_norm = Features(batch_norm=True)
    assert frozen(weights=str(tmp_path / "any.pth"), features=batch_norm) == 20  # those of the neck are new
    assert frozen(checkpoint=str(tmp_path / "any.pth"), features=batch_norm) == 28  # and those come with it


def test_more_bands_and_other_statistics_travel_in_the_recipe():
    from visionapps.structures import InputSpec

    spec = InputSpec(bands=("r", "g", "b", "n"), scale=10000.0, mean=(0.1,) * 4, std=(0.2,) * 4)
    model = sppnet("resnet10t", 2, spec=spec)
    assert build(model.recipe).spec == spec
    assert model.losses(batch(4)).keys() == {"roi_class", "roi_box"}


def test_arguments_of_every_kind_fit_on_a_page_and_are_documented():
    for wire in DETECTORS.values():
        signature = inspect.signature(wire)
        assert len(signature.parameters) <= 8
        for name in signature.parameters:
            assert f"    {name}: " in inspect.getdoc(wire), f"{wire.__name__}: {name}"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Features("c4"), "layout 'c4' must be fpn or single"),
        (lambda: Features(norms="none"), "norms 'none' frozen or trained"),
        (lambda: Regions(head="mlp"), "head 'mlp' must be linear or conv"),
        (lambda: faster_rcnn("resnet18", 0), "there are 0 classes"),
        (lambda: faster_rcnn("resnet18", 1, proposing=Proposing(sizes=((8,),))), "sizes for 1; give one list of sizes"),
        (lambda: sppnet("resnet18", 1, stride=64), "none of the wanted 64"),
        (lambda: torchvision_detector("ssd300_vgg16", 1), "'ssd300_vgg16' is none of fasterrcnn_resnet50_fpn, "),
    ],
)
def test_what_cannot_be_wired_is_refused(make, message):
    with pytest.raises(ConfigError, match=message), torch.device("meta"):
        make()


def test_a_pretrained_detector_learns_to_find_cars_in_a_real_photo(shared_data):
    from PIL import Image

    from visionapps.backbones import PACKAGES

    if PACKAGES["tf_efficientnet_lite0"].locate() is None:
        pytest.skip(PACKAGES["tf_efficientnet_lite0"].install)
    folder = shared_data / "vehicles"
    table = json.loads((folder / "annotations_coco.json").read_text())
    entry = next(e for e in table["images"] if sum(a["image_id"] == e["id"] for a in table["annotations"]) >= 6)
    xywh = np.array([a["bbox"] for a in table["annotations"] if a["image_id"] == entry["id"]], np.float32) / 2
    truth = torch.from_numpy(np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), 1))
    with Image.open(folder / "images" / entry["file_name"]) as file:
        photo = np.asarray(file.convert("RGB").resize((320, 320)))
    image = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None]
    torch.manual_seed(0)
    model = faster_rcnn(
        "tf_efficientnet_lite0",
        1,
        weights="package",
        features=Features(strides=(8, 16), channels=64),
        proposing=Proposing(sizes=((32.0,), (48.0,), (64.0,))),
        regions=Regions(hidden=64, sampled=64, limits=Limits(score=0.5)),
    )
    model.load_pretrained(("car",))
    count = len(truth)
    target = Targets(truth, torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.bool))
    data = Batch(image, ((320, 320),), (target,), None, (0,), ((0, 0),), (1.0,))
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    for _ in range(25):
        optimizer.zero_grad()
        sum(model.train().losses(data).values()).backward()
        optimizer.step()
    with torch.no_grad():
        (found,) = model.eval().detect(image, ((320, 320),))
    from torchvision.ops import box_iou

    assert len(found.boxes) >= count
    assert float((box_iou(truth, found.boxes).amax(1) > 0.5).float().mean()) > 0.8
