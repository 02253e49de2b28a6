"""Does everything that runs on the device give the results of the CPU, and how fast is it there?

Compares the confusion matrix, the losses and blended tiled prediction between the CPU and a device, and a process per
GPU with one engine, then measures prediction and training in megapixels per second. Run it once on every new kind of
machine; exit code 1 if something differs. On a machine without a GPU it compares the CPU with itself, which tests the
script.
"""

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from visionapps.errors import DataError
from visionapps.inference.bundle import Bundle
from visionapps.inference.engine import Scene
from visionapps.inference.network import choose_device
from visionapps.inference.plan import plan
from visionapps.inference.predictor import Predictor
from visionapps.inference.products import Band, Products
from visionapps.inference.shards import split
from visionapps.inference.sources import ArraySource
from visionapps.inference.tiling import Tiling
from visionapps.inference.work import Computing, Part, Reading
from visionapps.inference.workers import LocalWorkers, local_devices
from visionapps.losses import CrossEntropy, Dice, DiceCrossEntropy, Focal, HardPixels, MeanSquaredError
from visionapps.metrics.confusion import Confusion, argmax_labels
from visionapps.models import unet
from visionapps.segmentation.base import Segmentor
from visionapps.structures import LabelSpace

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
    plain = (CrossEntropy(label_smoothing=0.1), Dice(), Focal(), MeanSquaredError(), DiceCrossEntropy())
    # Not Lovasz: where errors tie to float tolerance, their order and with it their gradients may differ.
    for loss in (*plain, HardPixels(0.5, at_least=1)):
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


def check_workers(model: Segmentor, device: torch.device) -> str:
    """A process per GPU must give the bytes of one engine in this process, whatever the batch it fills."""
    devices = local_devices(None, "auto" if device.type == "cuda" else "cpu")
    devices = devices if len(devices) > 1 else devices * 2
    image = np.random.default_rng(0).integers(0, 256, (3, 2000, 700), dtype=np.uint8)
    image[:, 500:900, :300] = 0
    with tempfile.TemporaryDirectory() as folder:
        Bundle(copy.deepcopy(model), LabelSpace.named([f"c{i}" for i in range(CLASSES)]), 256).save(Path(folder, "b"))
        path = str(Path(folder, "scene.tif"))
        write_scene(path, image)
        products = Products(("confidence", "entropy"))
        tiling = Tiling(tile=256, overlap=32, batch=4)
        computing = Computing((Path(folder, "b"),), tiling=tiling, products=products, device=devices[0])
        reading = Reading(model.spec)
        layout = plan(image.shape[1:], tile=256, overlap=32)
        part = Part(path, 0, layout, range(len(layout.rows.starts)))
        source = reading.open(path)
        alone = [result.outcome for result in computing.engine().run([Scene(source, layout, part.rows)])]
        source.close()
        with LocalWorkers(computing, reading, devices=devices) as workers:
            spread = [answer.outcome for answer in workers.run(split([part], len(devices)))]
    maps = []
    for outcomes in (alone, spread):
        if errors := [outcome for outcome in outcomes if isinstance(outcome, DataError)]:
            return str(errors[0])
        bands = sorted((o for o in outcomes if isinstance(o, Band)), key=lambda band: band.window)
        maps.append(np.concatenate([band.planes for band in bands], axis=1))
    if maps[0].shape != maps[1].shape:
        return f"{len(devices)} processes gave {maps[1].shape}, not {maps[0].shape}"
    share = float((maps[0] != maps[1]).mean())
    return f"{share:.2%} of the values of {len(devices)} processes differ" if share else ""


def write_scene(path: str, image: np.ndarray) -> None:
    """(C, H, W) as a GeoTIFF whose value 0 means no data."""
    import rasterio

    shape = dict(zip(("count", "height", "width"), image.shape, strict=True))
    place = rasterio.transform.from_origin(300000, 7000000, 1, 1)
    with rasterio.open(
        path, "w", driver="GTiff", dtype=image.dtype, nodata=0, crs="EPSG:32735", transform=place, **shape
    ) as data:
        data.write(image)


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
        "a process per GPU": lambda: check_workers(model, device),
    }
    failures = 0
    for title, check in checks.items():
        problem = check()
        failures += bool(problem)
        print(f"{title:<24} {problem or 'equal'}")
    print(f"{'prediction':<24} {predict_speed(model, device, options.side):.1f} MP/s")
    print(f"{'training':<24} {train_speed(model, device, options.steps, options.batch):.1f} MP/s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
