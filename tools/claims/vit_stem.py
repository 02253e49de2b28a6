"""Transformers that see patches (ViT_P) against the same behind four convolutions (ViT_C), over rates and optimizers.

    python tools/claims/vit_stem.py --seeds 0 1

Xiao et al. 2021 (Early convolutions help transformers see better) claim that a convolutional stem in place of the
patches converges faster, works over a wider range of learning rates, and works with SGD as well as with AdamW. Here
both are tiny (64 channels; 5 blocks for ViT_P, 4 for ViT_C as in the paper: the stem costs about a block) and learn
drawn pictures of ten figures. Both are shown halfway, too, for convergence.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from pictures import Pictures, draw_pictures
from small_training import judge
from torch import nn
from torch.nn import functional as F

from visionapps.cli.table import render
from visionapps.networks.vit import Form, VisionTransformer

_CLASSES = 10
_WIDTH, _HEADS = 64, 4
_STEM = (8, 16, 32, 64)  # widths of the paper's 1GF stem, 24 to 192, by a third
_CLIP = 1.0  # length of the gradient, for both: plain transformers diverge without
_WARM = 0.1  # share of the steps over which the rate rises


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="of pictures and weights (0)")
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="of 64 pictures (300)")
    parser.add_argument("--train", type=int, default=2000, metavar="N", help="pictures to learn from (2000)")
    parser.add_argument("--side", type=int, default=64, metavar="PX", help="of the pictures, a multiple of 16 (64)")
    parser.add_argument("--adamw", type=float, nargs="*", default=[3e-4, 1e-3, 3e-3], metavar="R", help="rates to try")
    parser.add_argument("--sgd", type=float, nargs="*", default=[0.03, 0.1, 0.3], metavar="R", help="rates to try")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    trials = [("AdamW", rate) for rate in options.adamw] + [("SGD", rate) for rate in options.sgd]
    found: dict[tuple[str, str, float], list[tuple[float, float]]] = defaultdict(list)
    for seed in options.seeds:
        pictures = draw_pictures(options.train, 500, side=options.side, seed=seed)
        moved = Pictures(*(each.to(options.device) for each in pictures))
        for optimizer, rate in trials:
            for name in ("ViT_P", "ViT_C"):
                torch.manual_seed(seed)
                network = build(name, options.side).to(options.device)
                result = train(network, moved, optimizer, rate, steps=options.steps, seed=seed)
                found[name, optimizer, rate].append(result)
                print(f"seed {seed} {name} {optimizer} {rate:g}: {result[0]:.3f}, {result[1]:.3f}", flush=True)
    rows = []
    for optimizer, rate in trials:
        cells: list[float] = []
        for name in ("ViT_P", "ViT_C"):
            cells += [float(each) for each in np.mean(found[name, optimizer, rate], 0)]
        rows.append((optimizer, f"{rate:g}", *cells))
    headers = ("optimizer", "rate", "ViT_P halfway", "ViT_P", "ViT_C halfway", "ViT_C")
    print(f"\ntop-1 on 500 new pictures, mean of {len(options.seeds)} seed(s)\n\n{render(headers, rows)}")
    print(f"\n{_spread(rows)}")


def build(name: str, side: int) -> VisionTransformer:
    """A tiny form of either."""
    form = Form(_WIDTH, 5, _HEADS, 3.0) if name == "ViT_P" else Form(_WIDTH, 4, _HEADS, 3.0, _STEM)
    return VisionTransformer(name, form, _CLASSES, 3, native=side)


def train(
    network: nn.Module, pictures: Pictures, kind: str, rate: float, *, steps: int, seed: int
) -> tuple[float, float]:
    """Top-1 on the test pictures halfway and at the end."""
    optimizer: torch.optim.Optimizer
    if kind == "SGD":
        optimizer = torch.optim.SGD(network.parameters(), rate, momentum=0.9, weight_decay=1e-4)
    else:
        optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=0.05)
    generator = torch.Generator().manual_seed(seed)
    halfway = 0.0
    for step in range(steps):
        done = (step + 0.5) / steps
        factor = done / _WARM if done < _WARM else 0.5 * (1 + np.cos(np.pi * (done - _WARM) / (1 - _WARM)))
        optimizer.param_groups[0]["lr"] = rate * factor
        taken = torch.randint(len(pictures.train), (64,), generator=generator).to(pictures.train.device)
        loss = F.cross_entropy(network(pictures.train[taken]), pictures.train_labels[taken])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), _CLIP)
        optimizer.step()
        if step == steps // 2:
            halfway = 1 - judge(network, pictures.test, pictures.test_labels)[1]
    return halfway, 1 - judge(network, pictures.test, pictures.test_labels)[1]


def _spread(rows: Sequence[Sequence[object]]) -> str:
    told = []
    for name, place in (("ViT_P", 3), ("ViT_C", 5)):
        final = [float(str(row[place])) for row in rows]
        told.append(f"{name}: from {min(final):.3f} to {max(final):.3f}, mean {np.mean(final):.3f}")
    return "over all rates and both optimizers " + "; ".join(told)


if __name__ == "__main__":
    main()
