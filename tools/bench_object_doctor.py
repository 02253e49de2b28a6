"""Seconds that checking COCO annotations takes, on a made-up dataset of many objects.

    python tools/bench_object_doctor.py --annotations 100000

Parsing alone is the floor: json.loads of the same file.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from visionapps.data.annotations import read_annotations
from visionapps.data.object_dataset import ObjectDataset, ObjectPolicies


def make(path: Path, count: int, images: int, *, polygons: bool) -> None:
    """A COCO file of boxes in images of 1024 px, some of them wrong."""
    rng = np.random.default_rng(0)
    corner, side = rng.uniform(0, 900, (count, 2)).round(2), rng.uniform(4, 120, (count, 2)).round(2)
    side[::1000, 0] *= -1  # inverted
    rows = []
    for i, (x, y, w, h) in enumerate(np.concatenate([corner, side], 1).tolist()):
        row = {"id": i + 1, "image_id": i % images + 1, "category_id": i % 80 + 1, "bbox": [x, y, w, h], "iscrowd": 0}
        if polygons:
            row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x + w / 2, y + h / 2, x, y + h]]
        rows.append(row | {"area": abs(w * h)})
    listed = [{"id": i + 1, "file_name": f"{i}.jpg", "width": 1024, "height": 1024} for i in range(images)]
    names = [{"id": k + 1, "name": f"class {k}"} for k in range(80)]
    path.write_text(json.dumps({"images": listed, "annotations": rows, "categories": names}))


def seconds(work: Callable[[], object], times: int = 3) -> float:
    """The least processor time of a few runs."""
    took = []
    for _ in range(times):
        begin = time.process_time()
        work()
        took.append(time.process_time() - begin)
    return min(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=int, default=100_000, metavar="N", help="objects")
    parser.add_argument("--images", type=int, default=10_000, metavar="N", help="images that they are spread over")
    options = parser.parse_args()
    policies = ObjectPolicies(inverted_box="drop", duplicate_box="drop")
    with tempfile.TemporaryDirectory() as folder:
        for polygons in (False, True):
            path = Path(folder) / "annotations.json"
            make(path, options.annotations, options.images, polygons=polygons)
            dataset = ObjectDataset(images="", annotations=str(path), policies=policies)
            found = read_annotations(dataset)
            objects = sum(len(image.objects) for image in found.images)
            parse = seconds(lambda p=path: json.loads(p.read_bytes()))
            whole = seconds(lambda d=dataset: read_annotations(d))
            what = "boxes and masks" if polygons else "boxes"
            print(
                f"{options.annotations} objects ({what}) in {options.images} images: {whole:.2f} s of processor time, "
                f"{parse:.2f} s of them JSON; {objects} kept, {len(found.problems)} problems"
            )


if __name__ == "__main__":
    main()
