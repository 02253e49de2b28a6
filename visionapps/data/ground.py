"""The ground of a generated landscape: land-cover classes, light, fields and water. See landscape.py."""

from dataclasses import dataclass

import cv2
import numpy as np

from visionapps.structures import LabelSpace

LAND_COVER = LabelSpace(
    names=("bare", "building", "road", "trees", "grass", "water"),
    colors=((205, 170, 125), (220, 70, 60), (95, 95, 105), (35, 110, 50), (155, 205, 100), (50, 125, 200)),
)
BARE, BUILDING, ROAD, TREES, GRASS, WATER = range(6)

PARCEL = 190  # px between the centres of neighbouring fields
# What grows on a parcel: share of the parcels, label, colour, strength of fine texture, strength of plough lines.
PARCELS = (
    (0.30, GRASS, (118, 138, 78), 7.0, 0.0),  # meadow
    (0.22, GRASS, (136, 148, 84), 5.0, 7.0),  # crop
    (0.12, GRASS, (166, 156, 98), 6.0, 5.0),  # ripe crop, as yellow as soil
    (0.18, BARE, (156, 128, 98), 6.0, 6.0),  # ploughed
    (0.18, TREES, (62, 82, 48), 9.0, 0.0),  # wood
)
ROOFS = ((168, 92, 70), (146, 78, 62), (122, 121, 119), (98, 100, 102), (150, 130, 112), (196, 192, 186))


@dataclass(frozen=True)
class Style:
    """What all photos of one flight have in common."""

    sun: tuple[float, float]  # where shadows fall, a unit vector
    reach: float  # length of a shadow, as a share of the height of what casts it
    light: tuple[float, float, float]  # gain of each band
    haze: float  # share of white, 0 to 0.15
    dryness: float  # 0 lush to 1 dry
    roofs: tuple[float, ...]  # how common each of ROOFS is

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Style":
        """Another day, another place."""
        angle = rng.uniform(0, 2 * np.pi)
        red, green, blue = rng.uniform(0.82, 1.16) * rng.uniform(0.95, 1.05, 3)
        return cls(
            sun=(float(np.cos(angle)), float(np.sin(angle))),
            reach=float(rng.uniform(0.5, 1.1)),
            light=(float(red), float(green), float(blue)),
            haze=float(rng.uniform(0, 0.12)),
            dryness=float(rng.uniform(0, 1)),
            roofs=tuple(float(share) for share in rng.dirichlet(np.full(len(ROOFS), 1.5))),
        )


def fractal(height: int, width: int, cell: float, octaves: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of several scales, each half as large and half as strong: (H, W) float32, deviation about 1.

    Args:
        height: rows.
        width: columns.
        cell: wavelength of the coarsest scale, in pixels.
        octaves: number of scales.
        rng: decides everything.
    """
    total = np.zeros((height, width), dtype=np.float32)
    for octave in range(octaves):
        step = max(1.0, cell / 2**octave)
        rows, cols = int(height / step) + 3, int(width / step) + 3
        coarse = rng.standard_normal((rows, cols), dtype=np.float32)
        fine = cv2.resize(coarse, (int(cols * step), int(rows * step)), interpolation=cv2.INTER_CUBIC)
        total += fine[:height, :width] * 0.5**octave
    return total


def fields(
    height: int, width: int, style: Style, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parcels with crooked borders: the image (H, W, 3) float32, the labels, and where woods stand (H, W) bool."""
    parcel = _parcels(height, width, rng)
    count = int(parcel.max()) + 1
    shares, classes, colors, textures, lines = (np.array(column) for column in zip(*PARCELS, strict=True))
    kind = rng.choice(len(PARCELS), count, p=shares)
    color = colors[kind] + rng.normal(0, 7, (count, 1)) + rng.normal(0, 3, (count, 3))
    green = classes[kind] == GRASS
    color[green] += style.dryness * np.array([34, 14, 10])
    image = color.astype(np.float32)[parcel]

    rows, cols = np.mgrid[:height, :width].astype(np.float32)
    angle, frequency = rng.uniform(0, np.pi, count), 2 * np.pi / rng.uniform(6, 12, count)
    across, down = ((f * frequency).astype(np.float32)[parcel] for f in (np.cos(angle), np.sin(angle)))
    plough = np.sin(cols * across + rows * down + fractal(height, width, 60, 2, rng))
    patchy, fine = fractal(height, width, 120, 4, rng), fractal(height, width, 6, 3, rng)
    light = lines[kind].astype(np.float32)[parcel] * plough + 5 * patchy
    light += textures[kind].astype(np.float32)[parcel] * fine
    image += light[..., None]
    # Worn or moist patches shift the hue and do not only darken.
    image += (fractal(height, width, 90, 3, rng) * 4)[..., None] * np.array([1.0, 0.1, -0.3], dtype=np.float32)
    labels = classes.astype(np.uint8)[kind][parcel]
    wood = labels == TREES
    labels[wood] = GRASS  # what shows between the crowns
    return image, labels, wood


def _parcels(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Voronoi cells of jittered points, with their borders bent a little: (H, W) int32 numbers from 0."""
    margin = 40
    marks = np.full((height + 2 * margin, width + 2 * margin), 255, dtype=np.uint8)
    for row in range(PARCEL // 4, marks.shape[0] + PARCEL // 2, PARCEL):
        for col in range(PARCEL // 4, marks.shape[1] + PARCEL // 2, PARCEL):
            y, x = np.array([row, col]) + rng.uniform(-0.42, 0.42, 2) * PARCEL
            marks[int(np.clip(y, 0, marks.shape[0] - 1)), int(np.clip(x, 0, marks.shape[1] - 1))] = 0
    _, nearest = cv2.distanceTransformWithLabels(marks, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    rows, cols = np.mgrid[:height, :width].astype(np.float32)
    bend = [margin + 5 * fractal(height, width, 90, 3, rng) for _ in range(2)]
    bent = cv2.remap(nearest.astype(np.float32), cols + bend[0], rows + bend[1], cv2.INTER_NEAREST)
    numbers: np.ndarray = np.maximum(bent.astype(np.int32) - 1, 0)
    return numbers


def curve(height: int, width: int, rng: np.random.Generator, wild: float) -> np.ndarray:
    """A winding line from edge to edge, (N, 2) points a few pixels apart.

    Args:
        height: rows of the scene.
        width: columns of the scene.
        rng: decides everything.
        wild: how far it leaves the straight line, as a share of its length.
    """
    centre = np.array([width, height]) * rng.uniform(0.3, 0.7, 2)
    angle = rng.uniform(0, np.pi)
    ahead = np.array([np.cos(angle), np.sin(angle)])
    length = 1.2 * float(np.hypot(height, width))
    t = np.linspace(-0.5, 0.5, int(length / 6))
    waves = [rng.normal(0, wild / k) * np.sin(2 * np.pi * (k * t + rng.random())) for k in (1, 2, 3.5)]
    sideways = np.sum(waves, axis=0) * min(length, 1200)
    path: np.ndarray = centre + t[:, None] * length * ahead + sideways[:, None] * np.array([-ahead[1], ahead[0]])
    return path


def river(image: np.ndarray, labels: np.ndarray, chance: float, rng: np.random.Generator) -> None:
    """Perhaps a river, or half as often a pond, deeper towards the middle and with a sandy bank; in place."""
    height, width = labels.shape
    body = np.zeros((height, width), dtype=np.uint8)
    choice = rng.random()
    if choice < chance * 2 / 3:
        path = curve(height, width, rng, 0.06)
        widths = rng.uniform(24, 48) * (1 + 0.25 * np.sin(np.linspace(0, rng.uniform(6, 14), len(path))))
        for (x, y), radius in zip(path, widths, strict=True):
            cv2.circle(body, (round(x), round(y)), round(radius), 255, -1)
    elif choice < chance:
        centre = rng.uniform(0.15, 0.85, 2) * (width, height)
        axes = rng.uniform(0.08, 0.15, 2) * np.sqrt(height * width)
        cv2.ellipse(body, (centre, 2 * axes, float(rng.uniform(0, 180))), 255, -1)
    edge = cv2.GaussianBlur(body, (0, 0), 9).astype(np.float32) / 255 + 0.06 * fractal(height, width, 40, 3, rng)
    water, bank = edge > 0.5, (edge > 0.25) & (edge <= 0.5)
    if not water.any():
        return
    depth = np.clip(cv2.distanceTransform(water.astype(np.uint8), cv2.DIST_L2, 5)[water] / 30, 0, 1)[:, None]
    shallow, deep = np.array([104, 112, 88]) + rng.normal(0, 6, 3), np.array([48, 74, 78]) + rng.normal(0, 8, 3)
    ripples = fractal(height, width, 14, 3, rng)[water][:, None] * 2.5
    image[water] = shallow * (1 - depth) + deep * depth + ripples
    image[bank] = 0.5 * image[bank] + np.array([82, 73, 56], dtype=np.float32)
    labels[water] = WATER
    labels[bank] = BARE
