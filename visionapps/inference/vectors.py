"""Maps as vector layers: polygons of a label map in GeoPackage, GeoJSON, FlatGeobuf or GeoParquet.

Shapes: N planes of a band, H W raster, P polygons, V vertices.
"""

import errno
import json
import math
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np

from visionapps.errors import ConfigError, DataError, OutputError
from visionapps.files import is_full, output_error, whole_output
from visionapps.inference.areas import pixel_areas
from visionapps.inference.polygons import Polygoniser, Polygons
from visionapps.inference.products import Band
from visionapps.inference.sinks import Sink
from visionapps.inference.sources import Source
from visionapps.structures import GeoRef, LabelSpace

DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".fgb": "FlatGeobuf", ".parquet": "Parquet"}
_PARQUET = ".parquet"
GEOMETRY = "geometry"
_ROW_GROUP = 65536  # polygons of a row group: readers fetch whole ones
PIXELS = GeoRef(None, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0))  # a photo's: x is the column and y the row
_DATE = "2000-01-01T00:00:00.000Z"  # GeoPackage notes when it was written; equal maps shall be equal files
_DEGREE = 111_320.0  # metres of a degree of longitude at the equator


@dataclass(frozen=True)
class VectorOptions:
    """How polygons are drawn.

    Attributes:
        tolerance_px: how far outlines may stray from the sides of the pixels, in pixels; 0: exact outlines. 1 takes the
            stairs off slanted edges. Neighbours keep their common edges, and every polygon stays valid.
        min_area_m2: smaller regions are left out; what they covered stays empty.
        classes: names of the classes that are drawn; None: all.
    """

    tolerance_px: float = 1.0
    min_area_m2: float = 0.0
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("tolerance_px", "min_area_m2"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"vectors: {name} {getattr(self, name)} must not be negative")


@contextmanager
def vector_file(
    path: Path,
    source: Source,
    labels: LabelSpace,
    *,
    options: VectorOptions | None = None,
    confidence: int | None = None,
    overwrite: bool = False,
) -> Iterator[Sink]:
    """A layer with one polygon per region of equal labels, connected by the sides of pixels.

    Its columns: label, class (name), pixels, area_m2 (of the region's pixels on the ground), confidence (their mean, in
    [0, 1]; only if there is a plane of it). Without a CRS the third is ``area``, in squares of the map's unit; a photo
    has pixel coordinates, x the column and y the row. GeoJSON is in longitude and latitude, as its standard wants.
    Polygons wait in a file without a name beside ``path`` until the last row has come: memory holds open ones only.

    Args:
        path: .gpkg, .geojson, .fgb or .parquet.
        source: gives size and georeference.
        labels: names of the classes.
        options: what is drawn.
        confidence: plane of the bands that holds it, as round(254 * q); None: there is none.
        overwrite: replace an existing file.

    Yields:
        A sink that takes bands in order. An error inside the block leaves no file behind.

    Raises:
        ConfigError: the suffix stands for no format, or a class is not known.
        DataError: the source has ground control points only, or lies nowhere on the Earth.
        OutputError: the file exists already, or the disk refuses it.
    """
    options = options or VectorOptions()
    suffix = path.suffix.lower()
    if suffix not in DRIVERS:
        raise ConfigError(f"{path}: no vector format has the suffix {path.suffix!r}; use {', '.join(DRIVERS)}")
    if source.control and not source.georef:
        raise DataError(
            f"{source.name}: has ground control points and no transform, so its pixels have no straight map "
            "coordinates to draw polygons in; warp it first (gdalwarp), or draw a mask"
        )
    georef = source.georef or PIXELS
    areas = pixel_areas(georef, source.shape, name=source.name)
    with whole_output(path, overwrite) as part, TemporaryFile(dir=path.parent) as spool, disk_errors(path):
        sink = _PolygonSink(spool, georef, areas, labels=labels, options=options, confidence=confidence)
        yield sink
        count = sink.finish()
        spool.seek(0)
        if suffix == _PARQUET:
            _write_parquet(spool, part, georef)
        else:
            pixel = math.sqrt(float(np.median(areas))) if georef.crs else 1.0
            write_layer(spool, part, georef, layer=path.stem, pixel=pixel)
            check_complete(part, count)


class _PolygonSink:
    """Bands in, Arrow batches out into a file."""

    def __init__(
        self,
        spool: IO[bytes],
        georef: GeoRef,
        areas: np.ndarray,
        *,
        labels: LabelSpace,
        options: VectorOptions,
        confidence: int | None,
    ) -> None:
        import pyarrow as pa

        unknown = [name for name in options.classes or () if name not in labels.names]
        if unknown:
            raise ConfigError(f"vectors: no class {', '.join(unknown)}; there are {', '.join(labels.names)}")
        self._georef, self._areas, self._confidence = georef, areas, confidence
        self._names = np.array(labels.names, dtype=object)
        self._chosen = [i for i, name in enumerate(labels.names) if options.classes is None or name in options.classes]
        self._options = options
        self._polygoniser: Polygoniser | None = None  # the first band tells how wide it is
        self._count = 0
        fields = [("label", pa.uint8()), ("class", pa.string()), ("pixels", pa.int64())]
        fields.append(("area_m2" if georef.crs else "area", pa.float64()))
        fields += [] if confidence is None else [("confidence", pa.float32())]
        self._schema = pa.schema([*fields, (GEOMETRY, pa.binary())])
        packed = pa.ipc.IpcWriteOptions(compression="lz4")
        self._writer = pa.ipc.new_stream(spool, self._schema, options=packed)

    def write(self, band: Band) -> None:
        window, planes = band
        if self._polygoniser is None:
            self._polygoniser = Polygoniser(
                window.width,
                simplify_px=self._options.tolerance_px,
                min_area=self._options.min_area_m2,
                classes=self._chosen,
            )
        votes = None if self._confidence is None else planes[self._confidence]
        areas = self._areas[window.row : window.row_end]
        for polygons in self._polygoniser.add(planes[0], areas=areas, confidence=votes):
            self._spool(polygons)

    def finish(self) -> int:
        """Complete the spool; gives the number of polygons."""
        if self._polygoniser is not None:
            for polygons in self._polygoniser.finish():
                self._spool(polygons)
        self._writer.close()
        return self._count

    def _spool(self, polygons: Polygons) -> None:
        import pyarrow as pa

        columns: list[Any] = [polygons.labels, self._names[polygons.labels], polygons.pixels, polygons.areas]
        if self._confidence is not None:
            columns.append(pa.array(polygons.confidences.astype(np.float32), from_pandas=True))  # NaN is null
        columns.append(_wkb(polygons, self._georef))
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))
        self._count += len(polygons)


def _wkb(polygons: Polygons, georef: GeoRef) -> np.ndarray:
    """(P,) polygons in map coordinates; outlines run anticlockwise where y goes up."""
    import shapely

    a, b, c, d, e, f = georef.transform
    col, row = polygons.points.T
    places = np.column_stack([a * col + b * row + c, d * col + e * row + f])
    if a * e - b * d < 0:  # y goes up on the map and down on the screen: clockwise stays clockwise
        sizes = np.diff(polygons.rings)
        order = np.repeat(polygons.rings[:-1] + polygons.rings[1:] - 1, sizes) - np.arange(len(places))
        places = places[order]
    shapes = shapely.from_ragged_array(
        shapely.GeometryType.POLYGON, places, (polygons.rings, polygons.parts.astype(np.int64))
    )
    return np.asarray(shapely.to_wkb(shapes))


def _write_parquet(spool: IO[bytes], part: Path, georef: GeoRef) -> None:
    """GeoParquet 1.1 of what the spool holds."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import shapely

    # Without the Arrow schema, which would hide what is added to the metadata at the end from readers through Arrow.
    settings = {"compression": "zstd", "store_schema": False}
    with pa.ipc.open_stream(spool) as batches, pq.ParquetWriter(part, batches.schema, **settings) as writer:
        box = np.array([np.inf, np.inf, -np.inf, -np.inf])
        waiting: list[Any] = []
        for batch in batches:
            bounds = shapely.bounds(shapely.from_wkb(batch.column(GEOMETRY).to_numpy(zero_copy_only=False)))
            box = np.concatenate([np.minimum(box[:2], bounds[:, :2].min(0)), np.maximum(box[2:], bounds[:, 2:].max(0))])
            waiting.append(batch)
            if sum(map(len, waiting)) >= _ROW_GROUP:
                writer.write_table(pa.Table.from_batches(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting))
        column: dict[str, Any] = {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": _projjson(georef)}
        column["orientation"] = "counterclockwise"
        if np.isfinite(box).all():
            column["bbox"] = box.tolist()
        geo = {"version": "1.1.0", "primary_column": GEOMETRY, "columns": {GEOMETRY: column}}
        writer.add_key_value_metadata({"geo": json.dumps(geo)})


def _projjson(georef: GeoRef) -> dict[str, Any] | None:
    """The CRS as GeoParquet wants it; None: not known."""
    from rasterio.crs import CRS

    return None if georef.crs is None else dict(CRS.from_wkt(georef.crs).to_dict(projjson=True))


def write_layer(
    spool: IO[bytes], part: Path, georef: GeoRef, *, layer: str, pixel: float, geometry: str = "Polygon"
) -> None:
    """GeoPackage, GeoJSON or FlatGeobuf of what the spool holds, through GDAL.

    Args:
        spool: Arrow batches.
        part: where to write.
        georef: CRS.
        layer: its name.
        pixel: side of a pixel in metres.
        geometry: GDAL's name of what the features are.
    """
    import pyarrow as pa
    import pyogrio

    driver = DRIVERS[part.suffix.lower()]
    settings: dict[str, Any] = {}
    if driver == "GeoJSON" and georef.crs:
        # GDAL brings them to longitude and latitude. Vertices are rounded to a twentieth of a pixel or better.
        decimals = max(7, math.ceil(math.log10(20 * _DEGREE / pixel)))
        settings = {"RFC7946": "YES", "COORDINATE_PRECISION": str(decimals)}
    before = pyogrio.get_gdal_config_option("OGR_CURRENT_DATE")
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": _DATE})
    try:
        with pa.ipc.open_stream(spool) as batches, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'crs' was not provided")
            pyogrio.write_arrow(
                batches,
                part,
                layer=layer,
                driver=driver,
                geometry_name=GEOMETRY,
                geometry_type=geometry,
                crs=georef.crs,
                layer_options=settings,
            )
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": before})


def check_complete(part: Path, count: int) -> None:
    """Raise OSError unless the layer is whole: what fails when GDAL closes a file is no error of anybody."""
    import pyogrio

    suffix = part.suffix.lower()
    try:
        if suffix == ".geojson":  # opening one reads all of it
            with part.open("rb") as file:
                file.seek(max(0, part.stat().st_size - 8))
                whole = file.read().rstrip().endswith(b"}")
        else:
            whole = pyogrio.read_info(part, force_feature_count=True)["features"] == count
        if suffix == ".gpkg":  # the spatial index comes last
            with closing(sqlite3.connect(f"{part.resolve().as_uri()}?mode=ro", uri=True)) as package:
                index = "SELECT count(*) FROM gpkg_extensions WHERE extension_name = 'gpkg_rtree_index'"
                whole = whole and package.execute(index).fetchone()[0] == 1
    except (pyogrio.errors.DataSourceError, sqlite3.Error) as error:
        raise OSError(errno.EIO, f"the file was cut off: {error}") from error
    if not whole:
        raise OSError(errno.EIO, "the file was cut off")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Let what Arrow and GDAL say about a disk become one line; neither tells when it is full, the free space does."""
    import pyarrow as pa
    import pyogrio

    try:
        yield
    except OutputError:
        raise
    except (OSError, pa.ArrowException, pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError) as error:
        reason = error if isinstance(error, OSError) else OSError(errno.EIO, str(error).strip().splitlines()[0])
        if is_full(path.parent):
            reason = OSError(errno.ENOSPC, "")
        raise output_error(path, reason) from error
