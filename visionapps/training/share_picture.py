"""A picture of what training drew: which classes, and how that changed over the epochs."""

from pathlib import Path

import numpy as np

from visionapps.data.drawn import DrawnTable
from visionapps.training.pictures import pyplot

_LEGEND = 12  # names that a legend has room for


def draw_shares(table: DrawnTable, picture: Path) -> None:
    """Draw the share of each class in the pixels of photos and crops, and how many crops of each epoch held it.

    Args:
        table: of the run.
        picture: PNG to write.
    """
    plt = pyplot()
    places, names = np.arange(len(table.names)), table.names
    figure, (left, right) = plt.subplots(1, 2, figsize=(8 + 0.3 * len(names), 4), layout="constrained")
    left.bar(places - 0.2, table.photos.share_of_pixels, 0.4, label="photos")
    left.bar(places + 0.2, table.total.share_of_pixels, 0.4, label="crops")
    left.set(title="share of labelled pixels", xticks=places, yscale="log")
    left.set_xticklabels(names, rotation=45, ha="right")
    left.legend(fontsize=8)
    epochs = sorted(table.epochs)
    shares = np.stack([table.epochs[epoch].share_of_crops for epoch in epochs])
    for k, name in enumerate(names):
        right.plot(epochs, shares[:, k], marker=".", label=name)
    right.set(title="share of crops with the class", xlabel="epoch", ylim=(0, 1.02))
    if len(names) <= _LEGEND:
        right.legend(fontsize=8)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(picture, dpi=100)
    plt.close(figure)
