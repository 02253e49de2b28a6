"""Does everything that runs on the device give the results of the CPU, and how fast is it there?

Compares the confusion matrix, the losses and blended tiled prediction between the CPU and a device, then measures
prediction and training in megapixels per second. Run it once on every new kind of machine; exit code 1 if something
differs. On a machine without a GPU it compares the CPU with itself, which tests the script.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from visionapps.inference.predictor import Predictor, choose_device
from visionapps.inference.sources import ArraySource
from visionapps.losses import CrossEntropy, Dice, DiceCrossEntropy, Focal, MeanSquaredError
from visionapps.metrics.confusion import Confusion, argmax_labels
from visionapps.models import unet
from visionapps.segmentation.base import Segmentor

CLASSES = 25


def check_confusion(device: torch.device) -> str:
    """Counts must be equal to the last pixel."""
    logits = torch.randn(4, CLASSES, 200, 300)
    labels = torch.randint(0, CLASSES + 1, (4, 200, 300), dtype=torch.uint8)
    labels[labels == CLASSES] = 255
    scores = []
    for place in (torch.device("cpu"), device):
        confusion = Confusion(CLASSES)
        confusion.update(logits.to(place), labels.to(place))
        scores.append(confusion.compute())
    same = torch.equal(argmax_labels(logits), argmax_labels(logits.to(device)).cpu())
    return "" if scores[0] == scores[1] and same else "confusion matrices or labels differ"


def check_losses(device: torch.device) -> str:
    """Losses and their gradients must agree to float tolerance."""
    logits = torch.randn(2, CLASSES, 64, 64)
    labels = torch.randint(0, CLASSES, (2, 64, 64), dtype=torch.uint8)
    labels[0, :10] = 255
    for loss in (CrossEntropy(label_smoothing=0.1), Dice(), Focal(), MeanSquaredError(), DiceCrossEntropy()):
        found = []
        for place in (torch.device("cpu"), device):
            x = logits.to(place).requires_grad_()
            value = copy.deepcopy(loss).to(place)(x, labels.to(place))
            value.backward()
            assert x.grad is not None
            found.append((value.detach().cpu(), x.grad.cpu()))
        for cpu, other in zip(*found, strict=True):
            if not torch.allclose(cpu, other, rtol=1e-3, atol=1e-6):
                return f"{type(loss).__name__} differs by {float((cpu - other).abs().max()):.2e}"
    return ""


def check_prediction(model: Segmentor, device: torch.device) -> str:
    """Labels of fp32 prediction may differ only where two classes tie to float tolerance."""
    image = np.random.default_rng(0).integers(0, 256, (3, 700, 900), dtype=np.uint8)
    maps = []
    for place in ("cpu", str(device)):
        predictor = Predictor(copy.deepcopy(model), tile=256, device=place, precision="fp32")
        maps.append(np.concatenate([rows for _, rows in predictor.segment(ArraySource(image))]))
    share = float((maps[0] != maps[1]).mean())
    return "" if share < 1e-3 else f"{share:.2%} of the labels differ"


def predict_speed(model: Segmentor, device: torch.device, side: int) -> float:
    """Megapixels per second, end to end on an image in memory."""
    image = np.random.default_rng(0).integers(0, 256, (3, side, side), dtype=np.uint8)
    predictor = Predictor(copy.deepcopy(model), tile=512, overlap=64, device=str(device), batch=16)
    list(predictor.segment(ArraySource(image[:, :1024, :1024])))  # warm-up
    began = time.perf_counter()
    list(predictor.segment(ArraySource(image)))
    return side * side / (time.perf_counter() - began) / 1e6


def train_speed(model: Segmentor, device: torch.device, steps: int, batch: int) -> float:
    """Megapixels per second of forward, loss, backward and optimizer step on crops of 512 px."""
    net = copy.deepcopy(model).to(device=device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=device.type == "cuda")
    image = torch.randint(0, 256, (batch, 3, 512, 512), dtype=torch.uint8, device=device)
    labels = torch.randint(0, CLASSES, (batch, 512, 512), dtype=torch.uint8, device=device)
    loss = DiceCrossEntropy()
    began = 0.0
    for step in range(steps + 3):
        if step == 3:  # after the warm-up
            _wait(device)
            began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            value = loss(net(image.contiguous(memory_format=torch.channels_last)), labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    _wait(device)
    return steps * batch * 512 * 512 / (time.perf_counter() - began) / 1e6


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:1, cpu")
    parser.add_argument("--side", type=int, default=8192, help="of the image whose prediction is timed, in pixels")
    parser.add_argument("--steps", type=int, default=30, help="training steps that are timed")
    parser.add_argument("--batch", type=int, default=16, help="crops of a training step")
    parser.add_argument("--backbone", default="resnet34")
    options = parser.parse_args()
    torch.manual_seed(0)
    device = choose_device(options.device)
    torch.backends.cudnn.allow_tf32 = False  # comparisons in full float32
    model = unet(options.backbone, CLASSES).eval()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"device {device} ({name}), torch {torch.__version__}, {options.backbone}")
    checks: dict[str, Callable[[], str]] = {
        "confusion matrix": lambda: check_confusion(device),
        "losses and gradients": lambda: check_losses(device),
        "tiled prediction": lambda: check_prediction(model, device),
    }
    failures = 0
    for title, check in checks.items():
        problem = check()
        failures += bool(problem)
        print(f"{title:<24} {problem or 'equal to the CPU'}")
    print(f"{'prediction':<24} {predict_speed(model, device, options.side):.1f} MP/s")
    print(f"{'training':<24} {train_speed(model, device, options.steps, options.batch):.1f} MP/s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
