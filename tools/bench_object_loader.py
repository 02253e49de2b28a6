"""What a training item of a detector costs: reading, augmentation with boxes, collation, beside what others do.

    python tools/bench_object_loader.py [--size 640] [--objects 20] [--items 150]

Everything is measured in one process with one thread, in CPU milliseconds per item, on generated photos; means,
because augmentation draws its steps and the mean is what an epoch pays. The peers do the same work on the same photo:
turns or flips, zoom, and light, with boxes; they decode the JPEG each time, as their examples do, and once without.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from visionapps.cli.table import render
from visionapps.data.crops import init_worker
from visionapps.data.dataset import Split
from visionapps.data.landscape import landscape
from visionapps.data.object_crops import RandomObjects, View, collate_objects
from visionapps.data.object_dataset import ObjectDataset
from visionapps.data.object_doctor import examine_objects
from visionapps.data.object_transforms import object_aerial
from visionapps.data.transforms import albumentations

BATCH = 8
GOAL = 3.0  # ms per augmented item of 640 x 640


def write_photos(folder: Path, size: int, objects: int, count: int = 4) -> ObjectDataset:
    """JPEGs of generated landscapes of twice the size each way, with random boxes as a CSV file."""
    (folder / "images").mkdir()
    rows = ["image,xmin,ymin,xmax,ymax,class"]
    for number in range(count):
        rng = np.random.default_rng(number)
        image, _ = landscape(2 * size, 2 * size, rng)
        Image.fromarray(image).save(folder / f"images/{number}.jpg", quality=90)
        for _ in range(4 * objects):
            x, y = rng.integers(0, 2 * size - 60, 2)
            w, h = rng.integers(12, 60, 2)
            rows.append(f"{number}.jpg,{x},{y},{x + w},{y + h},thing{number % 2}")
    (folder / "boxes.csv").write_text("\n".join(rows) + "\n")
    split = Split(val_groups=("3",))
    return ObjectDataset(str(folder / "images"), str(folder / "boxes.csv"), split=split, cache=str(folder / "cache"))


def measure(call: Callable[[int], Any], count: int) -> float:
    """Mean CPU milliseconds of call(0), call(1), ... after some for warming up."""
    for index in range(3):
        call(index)
    times = []
    for index in range(count):
        began = time.thread_time()
        call(index)
        times.append((time.thread_time() - began) * 1e3)
    return statistics.fmean(times)


def torchvision_item(pixels: Callable[[], np.ndarray], boxes: np.ndarray, size: int) -> Callable[[int], Any]:
    """The same with torchvision.transforms.v2: crop, flips, zoom, colour jitter, boxes sanitised."""
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    steps = v2.Compose(
        [
            v2.RandomCrop(size),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.RandomApply([v2.RandomAffine(0, scale=(0.8, 1.25))], p=0.4),
            v2.RandomApply([v2.ColorJitter(0.2, 0.2)], p=0.7),
            v2.RandomApply([v2.ColorJitter(saturation=0.1, hue=0.03)], p=0.3),
            v2.RandomApply([v2.GaussianBlur(5, (0.3, 1.2))], p=0.075),
            v2.SanitizeBoundingBoxes(),
        ]
    )

    def item(index: int) -> Any:
        image = tv_tensors.Image(torch.from_numpy(pixels().transpose(2, 0, 1)))
        frame = tv_tensors.BoundingBoxes(
            torch.from_numpy(boxes), format="XYXY", canvas_size=(image.shape[-2], image.shape[-1])
        )
        return steps({"image": image, "boxes": frame, "labels": torch.zeros(len(boxes), dtype=torch.int64)})

    return item


def albumentations_item(pixels: Callable[[], np.ndarray], boxes: np.ndarray, size: int) -> Callable[[int], Any]:
    """The same with albumentations and its own handling of boxes."""
    a = albumentations()
    compose = a.Compose(
        [
            a.RandomCrop(size, size),
            a.D4(),
            a.Affine(scale=(0.8, 1.25), p=0.4),
            a.RandomBrightnessContrast(0.2, 0.2, p=0.7),
            a.RandomGamma((80, 125), p=0.3),
            a.HueSaturationValue(8, 25, 0, p=0.3),
            a.MultiplicativeNoise((0.94, 1.06), per_channel=True, p=0.3),
            a.OneOf(
                [a.GaussianBlur(blur_limit=0, sigma_limit=(0.3, 1.2)), a.ImageCompression(quality_range=(50, 95))],
                p=0.15,
            ),
            a.GaussNoise((0.01, 0.03), p=0.1),
        ],
        bbox_params=a.BboxParams("pascal_voc", label_fields=["labels"], clip=True, min_visibility=0.1),
    )

    def item(index: int) -> Any:
        result = compose(image=pixels(), bboxes=boxes, labels=np.zeros(len(boxes)))
        return torch.from_numpy(result["image"].transpose(2, 0, 1).copy())

    return item


def report(folder: Path, dataset: ObjectDataset, size: int, count: int) -> None:
    """Measure and print the tables."""
    found = examine_objects(dataset)
    found.raise_on_errors()
    photos = found.train
    plain = RandomObjects(photos, view=View(tile=size))
    augmented = RandomObjects(photos, view=View(tile=size), augment=object_aerial())
    mixed = RandomObjects(photos, view=View(tile=size, mosaic=1.0), augment=object_aerial())
    pasted = RandomObjects(photos, view=View(tile=size, copy_paste=1.0), augment=object_aerial())
    scaled = RandomObjects(photos, view=View(tile=size, scale=(0.75, 1.33)), augment=object_aerial())
    batch = [augmented[i] for i in range(BATCH)]
    path, boxes = photos[0].source, photos[0].objects.boxes.astype(np.float32)
    pixels = cv2.imread(path, cv2.IMREAD_COLOR_RGB)

    def decoded() -> np.ndarray:
        return np.array(Image.open(path))

    costs = {
        "item from the store, as it is": measure(plain.__getitem__, count),
        "item, object_aerial()": measure(augmented.__getitem__, count),
        "item, scale 0.75-1.33, object_aerial()": measure(scaled.__getitem__, count),
        "item, mosaic of four, object_aerial()": measure(mixed.__getitem__, count),
        "item, copy-paste, object_aerial()": measure(pasted.__getitem__, count),
        f"collate, per item of a batch of {BATCH}": measure(lambda _: collate_objects(batch), count) / BATCH,
        "torchvision v2, pixels in memory": measure(torchvision_item(lambda: pixels, boxes, size), count),
        "torchvision v2, PIL decodes": measure(torchvision_item(decoded, boxes, size), count // 3),
        "albumentations, pixels in memory": measure(albumentations_item(lambda: pixels, boxes, size), count),
        "albumentations, PIL decodes": measure(albumentations_item(decoded, boxes, size), count // 3),
    }
    ours = costs["item, object_aerial()"]
    print(render(["what", "CPU ms", "of object_aerial()"], [(k, v, v / ours) for k, v in costs.items()]))
    print(f"\ngoal: one augmented item of {size} px at most {GOAL:g} ms: {'met' if ours <= GOAL else 'NOT met'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=640, help="height and width of an item in pixels (default: 640)")
    parser.add_argument("--objects", type=int, default=20, help="objects per item, about (default: 20)")
    parser.add_argument("--items", type=int, default=150, help="items to measure (default: 150)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    init_worker(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report(folder, write_photos(folder, options.size, options.objects), options.size, options.items)


if __name__ == "__main__":
    main()
