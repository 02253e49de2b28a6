"""Does a network fit labels that were drawn at random, and how much later than true ones?

    python tools/claims/random_labels.py                     # about one CPU minute
    python tools/claims/random_labels.py --full CIFAR_DIR --device cuda --steps 40000 --batch 128

The claim (Zhang et al., Understanding Deep Learning Requires Rethinking Generalization, 2017, figure 1): the same
network, rate and data reach zero training error on random labels too, after more steps; of the test set it then knows
nothing. No weight decay and no augmentation.
"""

import argparse
import itertools
import time

import pictures
import torch
from small_training import judge
from torch.nn import functional as F
from tqdm import tqdm

from visionapps.cli.table import render
from visionapps.networks.cifar_resnet import cifar_resnet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    pictures.add_arguments(parser, count=1024, test_count=512)
    parser.add_argument("--depth", type=int, default=20, metavar="N", help="layers of the residual network (20)")
    parser.add_argument("--steps", type=int, default=1500, metavar="N", help="most steps (1500)")
    parser.add_argument("--batch", type=int, default=64, metavar="B", help="pictures per step (64)")
    parser.add_argument("--rate", type=float, default=0.02, help="of learning, constant (0.02)")
    parser.add_argument("--fitted", type=float, default=0.01, help="training error at which a run ends (0.01)")
    options = parser.parse_args()
    rows = []
    for seed in options.seeds:
        data = pictures.pictures_of(options, seed)
        for share in (0.0, 0.5, 1.0):
            began = time.process_time()
            row = fit_until(with_random_labels(data, share, seed), options, seed, f"{share:.0%} random, seed {seed}")
            rows.append((f"{share:.0%}", seed, *row, round(time.process_time() - began)))
    print(render(("random labels", "seed", "steps", "training error", "test error", "CPU s"), rows))
    print(f"a run ends below {options.fitted:.0%} training error or after {options.steps} steps; chance is 90%")


def with_random_labels(data: pictures.Pictures, share: float, seed: int) -> pictures.Pictures:
    """The same pictures with this share of the training labels drawn anew from all classes."""
    generator = torch.Generator().manual_seed(1000 + seed)
    count = len(data.train_labels)
    redrawn = torch.randperm(count, generator=generator)[: round(share * count)]
    labels = data.train_labels.cpu().clone()
    labels[redrawn] = torch.randint(len(pictures.NAMES), (len(redrawn),), generator=generator)
    return data._replace(train_labels=labels.to(data.train_labels.device))


def fit_until(data: pictures.Pictures, options: argparse.Namespace, seed: int, title: str) -> tuple[int, str, str]:
    """Train until the labels are known: steps taken, training and test error."""
    torch.manual_seed(seed)
    network = cifar_resnet(options.depth).to(options.device)
    optimizer = torch.optim.SGD(network.parameters(), options.rate, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    error, steps = 1.0, 0
    with tqdm(total=options.steps, desc=title, leave=False, mininterval=1) as bar:
        for epoch in itertools.count():
            for taken in torch.randperm(len(data.train), generator=generator).split(options.batch):
                rows = taken.to(data.train.device)
                loss = F.cross_entropy(network(data.train[rows]), data.train_labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                steps += 1
                bar.update()
            if epoch % 2 or steps >= options.steps:
                error = judge(network, data.train, data.train_labels)[1]
                bar.set_postfix(error=f"{error:.1%}")
            if error < options.fitted or steps >= options.steps:
                break
    return steps, f"{error:.1%}", f"{judge(network, data.test, data.test_labels)[1]:.1%}"


if __name__ == "__main__":
    main()
