"""A generated countryside seen from above, with its true land cover: fields, a river, roads, houses, trees.

Made to be learnable but not trivial: grey roofs look like asphalt, tiles like soil, meadows like crowns, and each
scene has its own sun, season and haze, so colour alone does not tell the classes apart.
Shapes: H W pixels of about 0.25 m; points are (x, y) in pixels, float.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from visionapps.data.ground import BUILDING, ROAD, ROOFS, TREES, WATER, Style, curve, fields, fractal, river


@dataclass(frozen=True)
class House:
    corners: np.ndarray  # (4, 2), the long sides 0-1 and 2-3
    height: float  # px
    color: np.ndarray  # (3,)
    flat: bool


def landscape(
    height: int, width: int, rng: np.random.Generator, style: Style | None = None, *, water: float = 0.75
) -> tuple[np.ndarray, np.ndarray]:
    """An aerial photo and its land cover.

    Args:
        height: rows; from 64 up it has something to show.
        width: columns.
        rng: decides everything.
        style: sun, season and haze; None draws them too.
        water: probability of a river or a pond, in [0, 1].

    Returns:
        (H, W, 3) uint8 RGB, and (H, W) uint8 labels of LAND_COVER.
    """
    style = style or Style.draw(rng)
    image, labels, wood = fields(height, width, style, rng)
    river(image, labels, water, rng)
    roads = _roads(image, labels, rng)
    houses = _houses(labels, roads, style, rng)
    crowns = _crowns(labels, wood, houses, rng)
    image = _shadows(image, houses, crowns, style)
    _paint_houses(image, labels, houses, style)
    _paint_crowns(image, labels, crowns, style, rng)
    return _expose(image, labels, style, rng), labels


def _roads(image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Draw one or two main roads and their side streets; gives the middle lines, (N, 2) each."""
    height, width = labels.shape
    mains = []
    for _ in range(1 + (height * width > 700 * 700)):
        # Of a few drafts the one that crosses the water rather than following it.
        drafts = [curve(height, width, rng, 0.03) for _ in range(4)]
        mains.append(min(drafts, key=lambda path: int(_on_water(labels, path).sum())))
    streets = []
    for main in mains:
        at = int(rng.integers(5, 25))
        while at < len(main) - 1:
            ahead = main[at + 1] - main[at]
            side = np.array([-ahead[1], ahead[0]]) / np.linalg.norm(ahead) * rng.choice([-1, 1])
            t = np.linspace(0, rng.uniform(180, 420), 60)[:, None]
            bend = rng.normal(0, 0.0008) * t**2
            street = main[at] + t * side + bend * ahead / np.linalg.norm(ahead)
            wet = _on_water(labels, street)
            streets.append(street[: int(wet.argmax())] if wet.any() else street)
            at += int(rng.integers(28, 60))
    streets = [street for street in streets if len(street) > 15]
    for street in streets:
        dirt = rng.random() < 0.25
        color = np.array([158, 136, 108]) if dirt else np.full(3, rng.uniform(108, 142))
        _draw_road(image, labels, street, int(rng.integers(9, 14)), color + rng.normal(0, 3, 3))
    for main in mains:
        _draw_road(image, labels, main, int(rng.integers(17, 24)), rng.uniform(98, 128) + rng.normal(0, 2, 3))
        for at in range(0, len(main) - 3, 6):  # the dashes in the middle
            cv2.polylines(image, [np.rint(main[at : at + 3]).astype(np.int32)], False, (205.0, 205.0, 200.0), 2)
        _cars(image, main, rng)
    return [*mains, *streets]


def _on_water(labels: np.ndarray, path: np.ndarray) -> np.ndarray:
    """For each point of a line whether it is over water: (N,) bool."""
    x, y = np.rint(path).astype(int).T
    inside = (x >= 0) & (x < labels.shape[1]) & (y >= 0) & (y < labels.shape[0])
    wet: np.ndarray = inside & (labels[np.where(inside, y, 0), np.where(inside, x, 0)] == WATER)
    return wet


def _draw_road(image: np.ndarray, labels: np.ndarray, path: np.ndarray, width: int, color: np.ndarray) -> None:
    """Verge, then surface, in place."""
    points = [np.rint(path).astype(np.int32)]
    verge = np.zeros(labels.shape, dtype=np.uint8)
    cv2.polylines(verge, points, False, 255, width + 5)
    image[verge > 0] = 0.55 * image[verge > 0] + 0.45 * np.array([150, 142, 116], dtype=np.float32)
    surface = np.zeros(labels.shape, dtype=np.uint8)
    cv2.polylines(surface, points, False, 255, width)
    image[surface > 0] = color
    labels[surface > 0] = ROAD


def _cars(image: np.ndarray, path: np.ndarray, rng: np.random.Generator) -> None:
    """A few cars on a road; they belong to it."""
    for at in rng.integers(1, len(path) - 1, len(path) // 30):
        ahead = path[at + 1] - path[at]
        angle = float(np.rad2deg(np.arctan2(ahead[1], ahead[0])))
        side = np.array([-ahead[1], ahead[0]]) / np.linalg.norm(ahead) * rng.choice([-5, 5])
        corners = cv2.boxPoints(((path[at] + side).tolist(), (17.0, 8.0), angle))
        color = rng.choice([[225, 225, 228], [45, 45, 50], [150, 30, 30], [60, 80, 130], [150, 152, 155]])
        cv2.fillPoly(image, [np.rint(corners).astype(np.int32)], color.tolist())


def _houses(labels: np.ndarray, roads: Sequence[np.ndarray], style: Style, rng: np.random.Generator) -> list[House]:
    """Houses along the roads, where there is room; some barns and halls."""
    height, width = labels.shape
    taken = cv2.dilate(np.isin(labels, (ROAD, WATER)).astype(np.uint8), np.ones((9, 9), np.uint8))
    density = fractal(height, width, 400, 2, rng)
    houses = []
    for path in roads:
        for at in range(4, len(path) - 1, 2):
            x, y = path[at]
            inside = 0 <= x < width and 0 <= y < height
            if not inside or rng.random() > 0.35 + 0.25 * density[int(y), int(x)]:
                continue
            ahead = (path[at + 1] - path[at]) / np.linalg.norm(path[at + 1] - path[at])
            large = rng.random() < 0.07
            size = rng.uniform((80, 50), (150, 85)) if large else rng.uniform((34, 26), (58, 38))
            side = np.array([-ahead[1], ahead[0]]) * rng.choice([-1, 1])
            middle = path[at] + side * (size[1] / 2 + rng.uniform(18, 40))
            angle = np.rad2deg(np.arctan2(ahead[1], ahead[0])) + rng.normal(0, 4) + rng.choice([0, 90], p=[0.7, 0.3])
            corners = cv2.boxPoints((middle.tolist(), size.tolist(), float(angle)))
            room = np.zeros_like(taken)
            cv2.fillConvexPoly(room, np.rint(corners).astype(np.int32), 1)
            if not room.any() or (room & taken).any():
                continue
            taken |= cv2.dilate(room, np.ones((13, 13), np.uint8))
            color = np.array(ROOFS[rng.choice(len(ROOFS), p=style.roofs)]) + rng.normal(0, 8) + rng.normal(0, 3, 3)
            long_first = np.linalg.norm(corners[1] - corners[0]) >= np.linalg.norm(corners[2] - corners[1])
            corners = corners if long_first else np.roll(corners, 1, axis=0)
            houses.append(House(corners, float(rng.uniform(18, 30)), color, large or rng.random() < 0.15))
    return houses


def _crowns(labels: np.ndarray, wood: np.ndarray, houses: Sequence[House], rng: np.random.Generator) -> np.ndarray:
    """Trees, dense in woods and scattered elsewhere, never on roads, water or roofs: (N, 3) of x, y, radius."""
    height, width = labels.shape
    free = ~np.isin(labels, (ROAD, WATER))
    footprint = np.zeros(labels.shape, dtype=np.uint8)
    for house in houses:
        cv2.fillConvexPoly(footprint, np.rint(house.corners).astype(np.int32), 1)
    free &= cv2.dilate(footprint, np.ones((15, 15), np.uint8)) == 0
    near = cv2.dilate(footprint, np.ones((91, 91), np.uint8)) > 0
    count = height * width // 110
    points = (rng.random((count, 2)) * (width, height)).astype(int)
    x, y = points.T
    groves = fractal(height, width, 150, 3, rng)[y, x]
    chance = np.where(wood[y, x], 0.95, np.where(near[y, x], 0.04, 0.0) + 0.06 * (groves > 1.3))
    kept = free[y, x] & (rng.random(count) < chance)
    radius = np.clip(rng.gamma(9, 1.05, count), 4, 18)
    crowns: np.ndarray = np.column_stack([x, y, radius])[kept]
    return crowns


def _shadows(image: np.ndarray, houses: Sequence[House], crowns: np.ndarray, style: Style) -> np.ndarray:
    """Darken what houses and trees hide from the sun; gives the image as (H, W, 3) uint8 to paint on."""
    shade = np.zeros(image.shape[:2], dtype=np.uint8)
    sun = np.array(style.sun) * style.reach
    for house in houses:
        both = np.concatenate([house.corners, house.corners + house.height * sun]).astype(np.float32)
        cv2.fillConvexPoly(shade, np.rint(cv2.convexHull(both)).astype(np.int32), 255)
    for x, y, radius in crowns:
        cv2.circle(shade, (round(x + 1.2 * radius * sun[0]), round(y + 1.2 * radius * sun[1])), round(radius), 255, -1)
    dark = cv2.GaussianBlur(shade, (0, 0), 1.0).astype(np.float32)[..., None] / 255
    shaded: np.ndarray = np.clip(image * (1 - dark * np.array([0.56, 0.52, 0.44], dtype=np.float32)), 0, 255)
    return shaded.astype(np.uint8)


def _paint_houses(image: np.ndarray, labels: np.ndarray, houses: Sequence[House], style: Style) -> None:
    """Gabled roofs with a bright and a dark side, and flat ones, in place."""
    for house in houses:
        a, b, c, d = house.corners
        outline = np.rint(house.corners).astype(np.int32)
        cv2.fillConvexPoly(labels, outline, BUILDING)
        if house.flat:
            cv2.fillConvexPoly(image, outline, _paint(house.color * 1.05), cv2.LINE_AA)
            cv2.polylines(image, [outline], True, _paint(house.color * 0.8), 2, cv2.LINE_AA)
            continue
        left, right = (a + d) / 2, (b + c) / 2  # the ends of the ridge
        normal = (a - d) / np.linalg.norm(a - d)
        slope = 0.22 * float(normal @ np.array(style.sun))
        for half, factor in (((a, b, right, left), 1 - slope), ((left, right, c, d), 1 + slope)):
            cv2.fillConvexPoly(image, np.rint(half).astype(np.int32), _paint(house.color * factor), cv2.LINE_AA)
        ridge = np.rint([left, right]).astype(int).tolist()
        cv2.line(image, ridge[0], ridge[1], _paint(house.color * 1.2), 1, cv2.LINE_AA)


def _paint_crowns(
    image: np.ndarray, labels: np.ndarray, crowns: np.ndarray, style: Style, rng: np.random.Generator
) -> None:
    """Round crowns, brighter towards the sun, in place."""
    sun = np.array(style.sun)
    greens = np.array([62, 86, 48]) + style.dryness * np.array([14, 4, 2])
    for x, y, radius in crowns:
        color = greens * rng.uniform(0.8, 1.2) + rng.normal(0, 4, 3)
        cv2.circle(labels, (round(x), round(y)), round(radius), TREES, -1)
        for share, factor in ((1.0, 0.78), (0.72, 1.0), (0.42, 1.22)):
            centre = np.rint(np.array([x, y]) - sun * radius * (1 - share) * 0.7).astype(int).tolist()
            cv2.circle(image, centre, max(1, round(radius * share)), _paint(color * factor), -1, cv2.LINE_AA)


def _expose(image: np.ndarray, labels: np.ndarray, style: Style, rng: np.random.Generator) -> np.ndarray:
    """What camera and air add: leaves and tiles have grain, then light, haze, blur and noise."""
    height, width = labels.shape
    grain = np.array([2, 4, 3, 13, 3, 1], dtype=np.float32)[labels] * fractal(height, width, 5, 3, rng)
    exposed = (image + grain[..., None]) * np.array(style.light, dtype=np.float32)
    exposed *= (1 + 0.05 * fractal(height, width, 700, 1, rng))[..., None]
    exposed = exposed * (1 - style.haze) + 215 * style.haze
    exposed = cv2.GaussianBlur(exposed, (0, 0), 0.7) + rng.normal(0, 2.0, (height, width, 1)).astype(np.float32)
    result: np.ndarray = np.clip(np.rint(exposed), 1, 255)  # 0 stays free to mean "no data"
    return result.astype(np.uint8)


def _paint(color: np.ndarray) -> tuple[int, ...]:
    return tuple(int(v) for v in np.clip(color, 0, 255))
