"""Selective search of this package beside that of OpenCV contrib: seconds per image and recall, on annotated photos.

OpenCV contrib and the headless OpenCV that this package needs cannot be installed together, so the peer runs in an
interpreter of its own (a virtual environment with numpy and opencv-contrib-python-headless):

    python tools/bench_proposals.py --images photos --annotations coco.json --opencv venv/bin/python

Both run on one thread; seconds are those of the processor, so that other work on the machine counts little.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

BUDGETS = (100, 300, 1000, 2000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=60, help="photos with objects, evenly spaced (60)")
    parser.add_argument("--modes", nargs="+", choices=("fast", "quality"), default=["fast"])
    parser.add_argument("--opencv", type=Path, help="interpreter that has opencv-contrib")
    options = parser.parse_args()

    from visionapps.data.annotations import read_annotations
    from visionapps.data.object_dataset import ObjectDataset

    found = read_annotations(ObjectDataset(str(options.images), str(options.annotations)))
    some = [image for image in found.images if (~image.objects.ignored).any()]
    chosen = some[:: max(1, len(some) // options.frames)][: options.frames]
    files = [options.images / image.name for image in chosen]
    truth = [image.objects for image in chosen]
    print(f"{len(files)} photos, {sum(int((~o.ignored).sum()) for o in truth)} objects")
    print(f"{'':24}{'s/image':>8}{'boxes':>8}  recall at 0.5 | average recall, with the best {BUDGETS} and all")
    for mode in options.modes:
        report(f"this package, {mode}", *ours(files, mode), truth, found.labels.names)
        if options.opencv:
            report(f"OpenCV, {mode}", *theirs(files, mode, options.opencv), truth, found.labels.names)


def report(name, seconds, boxes, truth, names):
    from visionapps.data.proposal_recall import recall_report

    found = recall_report(truth, boxes, names, budgets=(*BUDGETS, 10**9)).all
    recall, average = (" ".join(f"{v:.3f}" for v in row) for row in (found.recall[:, 0], found.average))
    mean = np.mean([len(each) for each in boxes])
    print(f"{name:24}{seconds:8.2f}{mean:8.0f}  {recall} | {average}", flush=True)


def ours(files, mode):
    import cv2

    from visionapps.data.images import read_image
    from visionapps.data.selective_search import SelectiveSearch, selective_search

    cv2.setNumThreads(1)
    search = SelectiveSearch(mode, most=None)
    selective_search(np.zeros((64, 64, 3), np.uint8), search)  # compiles
    boxes, seconds = [], 0.0
    for file in files:
        image = read_image(file)
        begin = time.process_time()
        boxes.append(selective_search(image, search))
        seconds += time.process_time() - begin
    return seconds / len(files), boxes


def theirs(files, mode, interpreter):
    with tempfile.TemporaryDirectory() as folder:
        task = json.dumps({"files": [str(f.resolve()) for f in files], "mode": mode, "folder": folder})
        subprocess.run([interpreter, __file__, "--peer"], input=task, text=True, check=True)
        boxes = [np.load(Path(folder) / f"{i}.npy") for i in range(len(files))]
        return float((Path(folder) / "seconds").read_text()), boxes


def peer():
    """What runs in the other interpreter: only numpy and OpenCV."""
    import cv2

    task = json.load(sys.stdin)
    cv2.setNumThreads(1)
    seconds = 0.0
    for i, file in enumerate(task["files"]):
        image = cv2.imread(file)
        begin = time.process_time()
        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
        search.setBaseImage(image)
        getattr(search, f"switchToSelectiveSearch{task['mode'].title()}")()
        boxes = search.process().astype(np.float32)
        seconds += time.process_time() - begin
        boxes[:, 2:] += boxes[:, :2]  # from x, y, width, height
        np.save(Path(task["folder"]) / f"{i}.npy", boxes)
    (Path(task["folder"]) / "seconds").write_text(str(seconds / len(task["files"])))


if __name__ == "__main__":
    if "--peer" in sys.argv:
        peer()
    else:
        main()
