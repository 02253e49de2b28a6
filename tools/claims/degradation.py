"""Does a plain network of 56 layers train worse than one of 20, and does the residual form mend it?

    python tools/claims/degradation.py                    # drawn pictures, about three CPU minutes
    python tools/claims/degradation.py --full CIFAR_DIR --device cuda --steps 64000 --batch 128 --rate 0.1

The claim (He et al. 2016, figure 6): of plain networks the deeper has the higher *training* error, so it is no
overfitting; of residual networks the deeper has the lower. The recipe is the paper's in small; with its rate of
0.1 the ResNet-56 does not begin to learn within 300 steps.
"""

import argparse
import time
from statistics import fmean

import pictures
import torch
from small_training import Recipe, fit

from visionapps.cli.table import render
from visionapps.networks.cifar_resnet import cifar_resnet

_KINDS = {"plain": "none", "ResNet": "A"}
_LAST = 20  # steps: the training loss is their mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    pictures.add_arguments(parser, count=1024, test_count=512)
    parser.add_argument("--depths", type=int, nargs="+", default=[20, 56], metavar="N", help="layers (20 56)")
    parser.add_argument("--kinds", nargs="+", choices=_KINDS, default=list(_KINDS), help="networks (both)")
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="of SGD (300)")
    parser.add_argument("--batch", type=int, default=64, metavar="B", help="pictures per step (64)")
    parser.add_argument("--rate", type=float, default=0.02, help="of learning, divided by ten at 1/2 and 3/4 (0.02)")
    parser.add_argument("--warm", type=int, default=0, metavar="N", help="first steps at a tenth of it (0)")
    options = parser.parse_args()
    recipe = Recipe(options.steps, options.batch, options.rate, warm=options.warm, augment=bool(options.full))
    rows = []
    for seed in options.seeds:
        data = pictures.pictures_of(options, seed)
        for kind in options.kinds:
            for depth in options.depths:
                torch.manual_seed(seed)
                network = cifar_resnet(depth, shortcut=_KINDS[kind]).to(options.device)
                began = time.process_time()
                result = fit(network, data, recipe, seed=seed, title=f"{kind}-{depth}, seed {seed}")
                rows.append(
                    (
                        f"{kind}-{depth}",
                        seed,
                        f"{fmean(result.losses[-_LAST:]):.3f}",
                        f"{result.train_error:.1%}",
                        f"{result.test_error:.1%}",
                        round(time.process_time() - began),
                    )
                )
    print(render(("network", "seed", "training loss", "training error", "test error", "CPU s"), rows))
    print(f"loss: mean of the last {_LAST} steps; errors: as the network predicts at the end; chance is 90%")


if __name__ == "__main__":
    main()
