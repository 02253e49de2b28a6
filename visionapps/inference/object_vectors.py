"""Objects as a vector layer that lies where their image lies: GeoPackage, GeoJSON or FlatGeobuf.

Shapes: N objects, H W image.
"""

import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from visionapps.errors import ConfigError, DataError
from visionapps.files import whole_output
from visionapps.inference.areas import pixel_areas
from visionapps.inference.sources import Source
from visionapps.inference.vectors import DRIVERS, GEOMETRY, PIXELS, check_complete, disk_errors, write_layer
from visionapps.masks import CocoRle, coco_to_runs, decode
from visionapps.objects import Objects
from visionapps.structures import GeoRef

SUFFIXES = (".gpkg", ".geojson", ".fgb")


def write_object_layer(
    path: Path, objects: Objects, source: Source, names: Sequence[str], *, image: str | None = None, overwrite: bool
) -> None:
    """A layer with one outline per object: of its mask where it has one, else of its box.

    Its columns: label, class (name), score (if they are detections), area_m2 (on the ground; without a CRS ``area``, in
    pixels), image. A box becomes a polygon of four corners, which stands askew where the raster does. A photo has pixel
    coordinates, x the column and y the row. GeoJSON is in longitude and latitude, as its standard wants.

    Args:
        path: .gpkg, .geojson or .fgb.
        objects: in pixels of the source.
        source: gives size and georeference.
        names: of the classes.
        image: what the column ``image`` holds; None: the source's name.
        overwrite: replace an existing file.

    Raises:
        ConfigError: the suffix stands for no format.
        DataError: the source has ground control points only, or lies nowhere on the Earth.
        OutputError: the file exists already, or the disk refuses it.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: no vector format of objects has this suffix; use {', '.join(SUFFIXES)}")
    assert path.suffix.lower() in DRIVERS
    if source.control and not source.georef:
        raise DataError(
            f"{source.name}: has ground control points and no transform, so its pixels have no straight map "
            "coordinates to draw boxes in; warp it first (gdalwarp), or choose --form coco, yolo, voc or csv"
        )
    georef = source.georef or PIXELS
    areas = pixel_areas(georef, source.shape, name=source.name)
    pixel = math.sqrt(float(np.median(areas))) if georef.crs else 1.0
    table = _table(objects, georef, areas, names=names, image=image or source.name)
    spool = BytesIO()
    _spool(table, spool)
    spool.seek(0)
    geometry = "Polygon" if objects.masks is None else "MultiPolygon"
    with whole_output(path, overwrite) as part, disk_errors(path):
        write_layer(spool, part, georef, layer=path.stem, pixel=pixel, geometry=geometry)
        check_complete(part, len(objects))


def _table(objects: Objects, georef: GeoRef, areas: np.ndarray, *, names: Sequence[str], image: str) -> Any:
    import pyarrow as pa

    columns: dict[str, Any] = {
        "label": pa.array(objects.labels, pa.int32()),
        "class": pa.array([names[label] for label in objects.labels], pa.string()),
    }
    if objects.scores is not None:
        columns["score"] = pa.array(objects.scores, pa.float64())
    middle = objects.boxes[:, [1, 3]].mean(1).astype(int).clip(0, len(areas) - 1)
    columns["area_m2" if georef.crs else "area"] = pa.array(objects.areas * areas[middle], pa.float64())
    columns["image"] = pa.array([image] * len(objects), pa.string())
    columns[GEOMETRY] = pa.array(_outlines(objects, georef), pa.binary())
    return pa.table(columns)


def _spool(table: Any, file: BytesIO) -> None:
    import pyarrow as pa

    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def _outlines(objects: Objects, georef: GeoRef) -> np.ndarray:
    """(N,) WKB in map coordinates, anticlockwise where y goes up."""
    import shapely

    if objects.masks is not None:
        shapes = np.array([mask_outline(m, box) for m, box in zip(objects.masks, objects.boxes, strict=True)], object)
    else:
        x0, y0, x1, y1 = objects.boxes.T
        shapes = np.asarray(shapely.box(x0, y0, x1, y1), object).reshape(-1)
    a, b, c, d, e, f = georef.transform

    def onto_map(points: np.ndarray) -> np.ndarray:
        col, row = points.T
        return np.stack([a * col + b * row + c, d * col + e * row + f], axis=1)

    return np.asarray(shapely.to_wkb(shapely.orient_polygons(shapely.transform(shapes, onto_map))), object)


def mask_outline(mask: CocoRle, box: np.ndarray) -> Any:
    """A mask as a shapely multi-polygon along the sides of its pixels, x the column and y the row.

    Only the box is looked at, so that the size of the image plays no part.

    Args:
        mask: of the whole image.
        box: (4,) what holds the mask.
    """
    import shapely
    from rasterio.features import shapes

    height, width = mask["size"]
    runs = coco_to_runs(mask, base=0)
    left, right = (int(v) for v in (max(0, math.floor(box[0])), min(width, math.ceil(box[2]))))
    if len(runs):  # masks may reach a little beyond their boxes
        left = min(left, int(runs[0, 0]) // height)
        right = max(right, int(runs[-1].sum() - 1) // height + 1)
    columns = decode(
        np.stack([runs[:, 0] - left * height, runs[:, 1]], 1), (height, right - left), order="column", base=0
    )
    rows = np.flatnonzero(columns.any(1))
    top, bottom = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 1)
    picture = columns[top:bottom].astype(np.uint8)
    parts = [shapely.geometry.shape(outline) for outline, value in shapes(picture) if value]
    return shapely.transform(shapely.multipolygons(parts), lambda points: points + np.array([left, top]))
