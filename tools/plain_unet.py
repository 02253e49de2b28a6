"""The script that a user would write without visionapps: the yardstick of configs/landcover/dubai_unet.yaml.

SMP's U-Net on EfficientNet-Lite0 with the same packaged ImageNet weights, random crops with flips, AdamW and
cross-entropy; by default 150 steps of 4 crops of 192 px on one thread. Photos, labels and the split are those of the
config, and the scores are taken on the same validation photos: the only difference is how the training is done.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch
from torch.nn import functional as F

from visionapps.backbones import pyramid
from visionapps.cli.check import read_dataset
from visionapps.cli.table import score_table
from visionapps.data.doctor import examine
from visionapps.data.store import Photo
from visionapps.metrics.confusion import Confusion, Scores
from visionapps.windows import Window


def load(photos: tuple[Photo, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    """All photos and labels in memory, as such a script would have them."""
    whole = [Window(0, 0, *photo.size) for photo in photos]
    return [(photo.image(window), photo.labels(window)) for photo, window in zip(photos, whole, strict=True)]


def draw(photos: list[tuple[np.ndarray, np.ndarray]], count: int, size: int, rng: np.random.Generator) -> tuple:
    images, labels = [], []
    for _ in range(count):
        image, label = photos[rng.integers(len(photos))]
        row, col = (int(rng.integers(0, length - size + 1)) for length in label.shape)
        image, label = (a[row : row + size, col : col + size] for a in (image, label))
        if rng.random() < 0.5:
            image, label = image[:, ::-1], label[:, ::-1]
        images.append(torch.from_numpy(image.copy()).permute(2, 0, 1))
        labels.append(torch.from_numpy(label.copy()))
    return torch.stack(images).float() / 127.5 - 1, torch.stack(labels).long()


def build(pretrained: bool, classes: int) -> torch.nn.Module:
    model = smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None, classes=classes)
    if pretrained:
        backbone = pyramid("tf_efficientnet_lite0", weights="package")
        backbone.load_pretrained()
        missing, _ = model.encoder.model.load_state_dict(backbone.body.state_dict(), strict=False)
        assert not [name for name in missing if not name.startswith(("conv_head", "bn2"))], missing
    return model


@torch.inference_mode()
def score(model: torch.nn.Module, photos: list[tuple[np.ndarray, np.ndarray]], classes: int) -> Scores:
    model.eval()
    confusion = Confusion(classes)
    for image, labels in photos:
        height, width = labels.shape
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
        x = F.pad(x, (0, -width % 32, 0, -height % 32))
        confusion.update(model(x)[..., :height, :width], torch.from_numpy(labels)[None])
    return confusion.compute()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/landcover/dubai_unet.yaml"))
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time instead")
    parser.add_argument("--crops", type=int, default=4, help="in a batch")
    parser.add_argument("--size", type=int, default=192, help="of a crop, in pixels")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--random", action="store_true", help="start from random weights")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    found = examine(read_dataset(options.config))
    names = found.coding.labels.names
    train, val = load(found.train), load(found.val)
    model = build(not options.random, len(names)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr)
    began, step = time.perf_counter(), 0
    while step < options.steps and time.perf_counter() - began < options.seconds:
        image, labels = draw(train, options.crops, options.size, rng)
        loss = F.cross_entropy(model(image), labels, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
    print(f"{step} steps of {options.crops} crops of {options.size} px: {time.perf_counter() - began:.0f} s")
    scores = score(model, val, len(names))
    print(score_table(names, scores))
    if "Unlabeled" in names:
        kept = [iou for name, iou in zip(names, scores.iou, strict=True) if name != "Unlabeled"]
        print(f"mean IoU without Unlabeled: {np.mean(kept):.3f}")


if __name__ == "__main__":
    main()
