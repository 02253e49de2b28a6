"""Cut photos with label maps into a folder of classes: tiles of which one class holds nearly all pixels.

    python tools/make_tiles.py --images ../shared/data/dubai/images --masks ../shared/data/dubai/masks \\
        --names Building Land Road Vegetation Water --colors "#3C1098" "#8429F6" "#6EC1E4" "#FEDD3A" "#E2A929" \\
        --leave-out Road --most 20 --out runs/landcover_tiles

writes runs/landcover_tiles/<class>/<photo>_<row>_<col>.png. The name begins with that of its photo, so that neighbours
can be kept on one side of a split: split: {group: "tile\\\\d+"}.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from visionapps.data.images import read_image, read_mask
from visionapps.data.labels import ClassDef, MaskCoding
from visionapps.files import list_files, whole_output
from visionapps.structures import IGNORE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="photos")
    parser.add_argument("--masks", type=Path, required=True, metavar="DIR", help="label maps of the same stems")
    parser.add_argument(
        "--names", nargs="+", required=True, metavar="CLASS", help="classes, by their value in the masks"
    )
    parser.add_argument("--colors", nargs="+", default=[], metavar="#RRGGBB", help="of the classes, for colour masks")
    parser.add_argument("--leave-out", nargs="+", default=[], metavar="CLASS", help="classes to make no folder of")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--side", type=int, default=64, metavar="PX", help="of the tiles (64)")
    parser.add_argument("--share", type=float, default=0.9, help="of a tile that its class must hold (0.9)")
    parser.add_argument("--most", type=int, metavar="N", help="tiles of a class and photo, evenly chosen (all)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    with whole_output(options.out, options.overwrite) as part:
        for path in list_files(options.images):
            mask = next(iter(sorted(options.masks.glob(f"{path.stem}.*"))), None)
            if mask is not None:
                counts.update(_cut(path, mask, part, options))
    for name, count in counts.most_common():
        print(f"{name:<16}{count:>7}")


def _cut(path: Path, mask: Path, out: Path, options: argparse.Namespace) -> Counter[str]:
    """Write the tiles of one photo. Returns how many there are of each class."""
    colors = options.colors or [None] * len(options.names)
    table = [ClassDef(name, color=color) for name, color in zip(options.names, colors, strict=True)]
    image = read_image(path)
    labels = MaskCoding.from_classes(table, void_ids=(IGNORE,)).encode(read_mask(mask), "void")
    side, tiles = options.side, {name: [] for name in options.names}
    for row in range(0, labels.shape[0] - side + 1, side):
        for col in range(0, labels.shape[1] - side + 1, side):
            values, numbers = np.unique(labels[row : row + side, col : col + side], return_counts=True)
            label = int(values[numbers.argmax()])
            if label != IGNORE and numbers.max() >= options.share * side * side:
                tiles[options.names[label]].append((row, col))
    found: Counter[str] = Counter()
    for name, places in tiles.items():
        if name in options.leave_out:
            continue
        step = 1 if options.most is None else max(1, -(-len(places) // options.most))
        for row, col in places[::step]:
            folder = out / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[row : row + side, col : col + side]).save(folder / f"{path.stem}_{row}_{col}.png")
            found[name] += 1
    return found


if __name__ == "__main__":
    main()
