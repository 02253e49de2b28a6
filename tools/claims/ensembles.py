"""What more looks at a photo bring: ten squares, dense evaluation, scales, their fusion, and two networks averaged.

    python tools/claims/ensembles.py --photos ../shared/data/imagenet_photos

needs photos whose names begin with their ImageNet class (0000_..., 0010_...), and the weights that packages bring.
Simonyan and Zisserman 2015 report for VGG nets, in top-1 error: 25.5 by one scale, 24.8 by three (tables 3 and 4), 24.4
by dense evaluation and squares together (table 5), 23.7 by two nets (table 6).

Nothing is drawn, so there are no seeds. "won, lost": photos that are right and were wrong by one square, and the
contrary; only where both are far apart does the difference mean something. The loss is finer: mean -log of the
probability of the true class.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from visionapps.classification.fusion import TestPlan
from visionapps.cli.table import render
from visionapps.data.images import read_image
from visionapps.files import list_files
from visionapps.inference.classifying import pretrained_bundle
from visionapps.inference.testing_tricks import PhotoTester

NETWORKS = ("tf_efficientnet_lite0", "torchvision/mobilenet_v2")
_ONE = "1 square"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR", help="the class begins the file name")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), metavar="NAME", help="with packaged weights")
    parser.add_argument("--scales", nargs="+", type=int, default=[224, 256, 288], metavar="PX", help="(224 256 288)")
    parser.add_argument("--crops", type=int, choices=(10, 50), default=10, help="squares, mirrored ones counted (10)")
    parser.add_argument("--most", type=int, metavar="N", help="of the photos, evenly chosen (all)")
    options = parser.parse_args()
    paths = list_files(options.photos)
    paths = [paths[i] for i in np.linspace(0, len(paths) - 1, options.most or len(paths)).round().astype(int)]
    labels = np.array([int(path.name.split("_")[0]) for path in paths])
    middle = sorted(options.scales)[len(options.scales) // 2]
    plans = {
        _ONE: TestPlan(),
        f"{options.crops} squares": TestPlan(crops=options.crops),
        f"dense at {middle}": TestPlan(dense=True, crops=None, scales=(middle,)),
        f"dense at {', '.join(map(str, options.scales))}": TestPlan(
            dense=True, crops=None, scales=tuple(options.scales)
        ),
    }
    answers: dict[str, dict[str, np.ndarray]] = {}
    rows = []
    for name in options.networks:
        answers[name], costs = _answers(name, plans, paths)
        squares, scales = list(plans)[1], list(plans)[3]
        answers[name]["both fused"] = (answers[name][squares] + answers[name][scales]) / 2
        costs["both fused"] = tuple(a + b for a, b in zip(costs[squares], costs[scales], strict=True))
        rows += [
            _row(name, plan, found, answers[name][_ONE], labels, costs[plan]) for plan, found in answers[name].items()
        ]
    if len(options.networks) > 1:
        first = answers[options.networks[0]]
        for plan in first:
            mean = np.mean([answers[name][plan] for name in options.networks], 0)
            rows.append(_row("all averaged", plan, mean, first[_ONE], labels, None))
    print(f"{len(paths)} photos; won and lost beside one square of the network, of the first one for averages\n")
    print(render(("network", "looks", "top-1", "top-5", "loss", "won", "lost", "forwards", "CPU s"), rows))


def _answers(
    name: str, plans: dict[str, TestPlan], paths: Sequence[Path]
) -> tuple[dict[str, np.ndarray], dict[str, tuple[float, ...]]]:
    """(N, classes) probabilities by plan; forwards and CPU seconds per photo."""
    bundle = pretrained_bundle(name)
    found, costs = {}, {}
    for title, plan in plans.items():
        tester = PhotoTester([bundle], "cpu", "fp32", plan=plan)
        start = time.process_time()
        found[title] = np.stack(list(tester.probabilities(read_image(path) for path in paths)))
        costs[title] = (tester.cost.forwards / len(paths), (time.process_time() - start) / len(paths))
        print(f"{name}: {title} done", flush=True)
    return found, costs


def _row(
    name: str, plan: str, found: np.ndarray, one: np.ndarray, labels: np.ndarray, cost: tuple[float, ...] | None
) -> tuple[object, ...]:
    rank = (found > found[np.arange(len(labels)), labels][:, None]).sum(1)
    right, before = rank == 0, one.argmax(1) == labels
    loss = float(-np.log(np.maximum(found[np.arange(len(labels)), labels], 1e-12)).mean())
    won, lost = int((right & ~before).sum()), int((before & ~right).sum())
    spent: tuple[object, ...] = (None, None) if cost is None else (f"{cost[0]:g}", f"{cost[1]:.3f}")
    return name, plan, float(right.mean()), float((rank < 5).mean()), loss, won, lost, *spent


if __name__ == "__main__":
    main()
