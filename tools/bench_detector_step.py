"""Training and inference of our Faster R-CNN beside torchvision's: the same backbone, weights and settings.

    python tools/bench_detector_step.py
    python tools/bench_detector_step.py --device cuda --batch 8 --precision bf16

Both detectors share one torchvision ResNet-50 with FPN (or MobileNetV3, or a net of a few convolutions that leaves the
detector's own arithmetic to be seen) and have equal weights; both see the same images without any resizing. The two
take turns in one process, so that a busy machine slows both: the ratio is of the medians, in CPU seconds of one thread
on a CPU, in wall seconds on a GPU. Goal: a training step of at most 1.05.
"""

import argparse
import itertools
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from visionapps.backbones.base import Backbone
from visionapps.boxes import Batch, Targets
from visionapps.cli.table import render
from visionapps.detection.anchors import Anchors
from visionapps.detection.base import Limits
from visionapps.detection.fpn import Neck
from visionapps.detection.pooling import RoIPooler
from visionapps.detection.roi import BoxHead, RoIHeads
from visionapps.detection.rpn import RPN
from visionapps.detection.two_stage import TwoStage
from visionapps.runtime import keep_freed_memory
from visionapps.structures import InputSpec, Level

_CLASSES = 20
_SIDES = (32, 64, 128, 256, 512)


class Tiny(nn.Module):
    """Strides 4 to 32 for next to nothing, and torchvision's pyramid on top."""

    out_channels = 256

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 8, 16, 16, 16)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=4 if a == 3 else 2, padding=1), nn.ReLU())
            for a, b in itertools.pairwise(widths)
        )
        self.fpn = FeaturePyramidNetwork(list(widths[1:]), 256, LastLevelMaxPool())

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        maps = OrderedDict()
        for i, stage in enumerate(self.body):
            image = stage(image)
            maps[str(i)] = image
        given: dict[str, Tensor] = self.fpn(maps)
        return given


class Shared(Backbone):
    """A torchvision backbone, its pyramid included, as one of ours."""

    def __init__(self, whole: nn.Module, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.whole = whole
        self.spec = InputSpec()
        self.levels = tuple(Level(stride, whole.out_channels) for stride in strides)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.whole(image).values())


class AsTheyAre(Neck):
    """The maps of a backbone that brings its own pyramid."""

    def __init__(self, levels: tuple[Level, ...]) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return features


def shared_backbone(name: str) -> tuple[nn.Module, tuple[int, ...], tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """A backbone without pretrained weights, the strides of its maps, of those pooled from, and anchors' sizes."""
    if name == "mobilenet":
        whole = mobilenet_backbone(backbone_name="mobilenet_v3_large", weights=None, fpn=True, trainable_layers=6)
        return whole, (32, 32, 64), (32,), (_SIDES,) * 3  # two maps of one stride; torchvision pools from the first
    whole = Tiny() if name == "tiny" else resnet_fpn_backbone(backbone_name=name, weights=None, trainable_layers=5)
    return whole, (4, 8, 16, 32, 64), (4, 8, 16, 32), tuple((side,) for side in _SIDES)


def both(name: str, device: torch.device) -> tuple[TwoStage, FasterRCNN]:
    """The two detectors, of equal weights."""
    torch.manual_seed(0)
    whole, strides, pooled, sizes = shared_backbone(name)
    generator = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    theirs = FasterRCNN(whole, _CLASSES + 1, rpn_anchor_generator=generator)
    theirs.transform.resize = lambda image, target=None: (image, target)
    backbone = Shared(whole, strides)
    heads = RoIHeads(RoIPooler(pooled), BoxHead(256), _CLASSES)
    rpn = RPN(backbone.levels, Anchors(strides, sizes))
    ours = TwoStage(backbone, AsTheyAre(backbone.levels), heads, rpn=rpn, limits=Limits(0.05, 0.5, 100))
    first, second = theirs.rpn.head, theirs.roi_heads
    pairs = [
        (rpn.convs[0], first.conv[0][0]),
        (rpn.objectness, first.cls_logits),
        (rpn.deltas, first.bbox_pred),
        (heads.head.fc6, second.box_head.fc6),
        (heads.head.fc7, second.box_head.fc7),
        (heads.classes, second.box_predictor.cls_score),
    ]
    for own, other in pairs:
        other.load_state_dict(own.state_dict())
    with torch.no_grad():
        second.box_predictor.bbox_pred.weight[4:], second.box_predictor.bbox_pred.bias[4:] = (
            heads.deltas.weight,
            heads.deltas.bias,
        )
    return ours.to(device), theirs.to(device)


def images_and_objects(options: argparse.Namespace, device: torch.device) -> tuple[Batch, list[Tensor], list[Any]]:
    """The same batch for us and for torchvision."""
    generator = torch.Generator().manual_seed(1)
    height, width = options.size
    image = torch.randint(0, 256, (options.batch, 3, height, width), generator=generator, dtype=torch.uint8).to(device)
    targets, theirs = [], []
    for _ in range(options.batch):
        corner = torch.rand(options.objects, 2, generator=generator) * torch.tensor([width, height]) * 0.7
        side = (0.03 + 0.25 * torch.rand(options.objects, 2, generator=generator)) * torch.tensor([width, height])
        boxes = torch.cat((corner, corner + side), 1).to(device)
        labels = torch.randint(0, _CLASSES, (options.objects,), generator=generator).to(device)
        targets.append(Targets(boxes, labels, torch.zeros_like(labels, dtype=torch.bool)))
        theirs.append({"boxes": boxes, "labels": labels + 1})
    count = options.batch
    sizes = ((height, width),) * count
    batch = Batch(image, sizes, tuple(targets), None, tuple(range(count)), ((0, 0),) * count, (1.0,) * count)
    return batch, [each / 255 for each in image], theirs


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """CPU seconds of one call, on a GPU wall seconds until it is idle again."""
    if device.type == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def steps(options: argparse.Namespace, device: torch.device) -> dict[str, tuple[Callable[[], object], ...]]:
    """What is measured: ours and theirs of each kind."""
    ours, theirs = both(options.backbone, device)
    batch, images, targets = images_and_objects(options, device)
    precision = torch.autocast(device.type, dtype=torch.bfloat16, enabled=options.precision == "bf16")
    optimizers = [torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9) for model in (ours, theirs)]

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, losses: Callable[[], dict[str, Tensor]]) -> None:
        model.train()
        with precision:
            terms = losses()
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()

    def infer(model: nn.Module, detect: Callable[[], object]) -> None:
        model.eval()
        with torch.inference_mode(), precision:
            detect()

    return {
        "training": (
            lambda: train(ours, optimizers[0], lambda: ours.losses(batch)),
            lambda: train(theirs, optimizers[1], lambda: theirs(images, targets)),
        ),
        "inference": (
            lambda: infer(ours, lambda: ours.detect(batch.image, batch.sizes)),
            lambda: infer(theirs, lambda: theirs(images)),
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50", choices=("resnet50", "resnet18", "mobilenet", "tiny"))
    parser.add_argument("--size", type=int, nargs=2, default=(640, 640), metavar="PX", help="height, width (640 640)")
    parser.add_argument("--batch", type=int, default=2, help="images per step (2)")
    parser.add_argument("--objects", type=int, default=10, help="annotated boxes per image (10)")
    parser.add_argument("--repeats", type=int, default=5, help="steps of each; the median counts (5)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    rows = []
    for kind, works in steps(options, device).items():
        for work in works:  # kernels are chosen and memory is found
            seconds(work, device)
        turns = [[seconds(work, device) for work in works] for _ in range(options.repeats)]
        own, other = (statistics.median(turn[i] for turn in turns) for i in (0, 1))
        rows.append([kind, f"{options.batch / own:.2f}", f"{options.batch / other:.2f}", f"{own / other:.3f}"])
    print(
        f"{options.backbone}, {options.batch} x {options.size[0]} x {options.size[1]} px, {options.precision}, {device}"
    )
    print(render(["", "ours: images/s", "torchvision: images/s", "ratio of times"], rows))


if __name__ == "__main__":
    main()
