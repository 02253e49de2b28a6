"""torchvision's Faster R-CNN, trained as runs of ours are: yardstick of configs/detection/vehicles_faster_rcnn.yaml.

The generic FasterRCNN of torchvision.models.detection on the same backbone with the same packaged weights and frozen
batch norms, behind torchvision's feature pyramid, with the anchors, widths, samples and limits of the config. Photos,
batches, augmentation, optimizer, learning rates, averages, steps and scores are those of the config: the only
difference is the detector.

    python tools/train_torchvision_detector.py --trainer.max_epochs 2
"""

import argparse
import time
from collections import OrderedDict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from visionapps.boxes import Batch, Detections
from visionapps.cli.table import render
from visionapps.detection.base import Detector, Limits
from visionapps.detection.rpn import ProposalLimits
from visionapps.models.detection import Features, Proposing, Regions, body_of
from visionapps.training.detection import DetectionTask
from visionapps.training.run import build


class Pyramid(nn.Module):
    """A backbone and torchvision's feature pyramid, as torchvision's detectors want them."""

    def __init__(self, body: nn.Module, channels: list[int], out_channels: int) -> None:
        super().__init__()
        from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

        self.body = body
        self.fpn = FeaturePyramidNetwork(channels, out_channels, LastLevelMaxPool())
        self.out_channels = out_channels

    def forward(self, image: Tensor) -> "OrderedDict[str, Tensor]":
        return self.fpn(OrderedDict((str(i), level) for i, level in enumerate(self.body(image))))


class TorchvisionDetector(Detector):
    """torchvision's Faster R-CNN behind the two doors of ours.

    Args:
        arguments: of visionapps.models.faster_rcnn, as a recipe holds them.
        weights: of the backbone.
    """

    def __init__(self, arguments: dict[str, Any], weights: str) -> None:
        from torchvision.models.detection import FasterRCNN
        from torchvision.models.detection.anchor_utils import AnchorGenerator
        from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
        from torchvision.ops import MultiScaleRoIAlign

        features = Features(**arguments["features"])
        proposing = Proposing(**arguments["proposing"] | {"limits": ProposalLimits(**arguments["proposing"]["limits"])})
        regions = Regions(**arguments["regions"] | {"limits": Limits(**arguments["regions"]["limits"])})
        body = body_of(arguments["backbone"], weights, None, None, features)
        super().__init__(body, arguments["num_classes"], regions.limits)
        names = [str(i) for i in range(len(body.levels))]
        width, size = features.channels, regions.size
        strides = [level.stride for level in body.levels] + [2 * body.levels[-1].stride]
        sizes = proposing.sizes or tuple((8 * stride,) for stride in strides)
        before, after = proposing.limits.before, proposing.limits.after
        spec = body.spec
        self.network = FasterRCNN(
            Pyramid(body, [level.channels for level in body.levels], width),
            image_mean=list(spec.mean),
            image_std=list(spec.std),
            rpn_anchor_generator=AnchorGenerator(sizes, (tuple(proposing.ratios),) * len(sizes)),
            rpn_pre_nms_top_n_train=before[0],
            rpn_pre_nms_top_n_test=before[1],
            rpn_post_nms_top_n_train=after[0],
            rpn_post_nms_top_n_test=after[1],
            rpn_batch_size_per_image=proposing.sampled,
            box_roi_pool=MultiScaleRoIAlign(names, size, 2),
            box_head=TwoMLPHead(width * size**2, regions.hidden),
            box_predictor=FastRCNNPredictor(regions.hidden, self.num_classes + 1),
            box_batch_size_per_image=regions.sampled,
            box_positive_fraction=regions.objects,
        )
        # Photos come at the size that they shall have.
        self.network.transform.resize = lambda image, target=None: (image, target)

    def load_pretrained(self, names: tuple[str, ...]) -> None:
        self.backbone.load_pretrained()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        # torchvision knows no ignored objects, and its label 0 is the background.
        targets = [{"boxes": t.boxes[~t.ignore], "labels": t.labels[~t.ignore] + 1} for t in batch.targets]
        return self.network(self._images(batch.image, batch.sizes), targets)

    def detect(self, image: Tensor, sizes: Any, proposals: Any = None) -> list[Detections]:
        self.network.roi_heads.score_thresh = self.limits.score
        self.network.roi_heads.nms_thresh = self.limits.nms
        self.network.roi_heads.detections_per_img = self.limits.most
        found = self.network(self._images(image, sizes))
        return [Detections(each["boxes"], each["labels"] - 1, each["scores"]) for each in found]

    def judge(self, batch: Batch) -> tuple[dict[str, Tensor], list[Detections]]:
        found = self.detect(batch.image, batch.sizes)
        return {"none": torch.zeros((), device=batch.image.device)}, found  # torchvision gives one or the other

    def _images(self, image: Tensor, sizes: Any) -> list[Tensor]:
        scale = self.spec.scale
        return [picture[:, :h, :w].float() / scale for picture, (h, w) in zip(image, sizes, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/detection/vehicles_faster_rcnn.yaml"))
    parser.add_argument("--ours", action="store_true", help="train our detector instead, in the same loop")
    parser.add_argument("--out", type=Path, help="folder of logs and checkpoints (a temporary one)")
    options, settings = parser.parse_known_args()
    with TemporaryDirectory() as folder:
        trainer, task, data, _ = build(options.config, options.out or Path(folder), settings)
        assert isinstance(task, DetectionTask)
        data.setup("fit")
        if not options.ours:
            # The recipe holds no weights, for a bundle brings them; those of the config are what the backbone wants.
            task.model = TorchvisionDetector(task.model.recipe["arguments"], task.model.backbone.weights)
        task.prepare(data, pretrained=True)
        wall, cpu = time.perf_counter(), time.process_time()
        trainer.fit(task, data)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert task.scores is not None
    name = "ours" if options.ours else "torchvision"
    row = (name, trainer.global_step, wall, cpu, task.scores.ap, task.scores.ap50, task.scores.ap75)
    print(render(("detector", "steps", "seconds", "CPU seconds", "AP", "AP50", "AP75"), [row]))


if __name__ == "__main__":
    main()
