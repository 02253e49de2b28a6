"""The verb predict with a detector, as a person types it."""

import json
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
import torch
from PIL import Image
from rasterio.crs import CRS
from rasterio.transform import Affine
from torch import Tensor, nn

import visionapps.models
from visionapps.boxes import Detections
from visionapps.cli.main import main
from visionapps.detection.base import Detector
from visionapps.inference.bundle import Bundle
from visionapps.models import unet
from visionapps.models.recipes import remember
from visionapps.structures import LabelSpace
from visionapps.testing import TinyBackbone

HERE = Affine(0.5, 0, 400000, 0, -0.5, 5000000)
LABELS = LabelSpace(("car", "bus"), ((250, 0, 0), (0, 250, 0)))


class Spots(Detector):
    """Bright rectangles in an even ground: red ones are cars, green ones buses; the brighter, the surer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(TinyBackbone(), num_classes)
        self.unused = nn.Parameter(torch.zeros(1))

    def detect(
        self, image: Tensor, sizes: tuple[tuple[int, int], ...], proposals: tuple[Tensor, ...] | None = None
    ) -> list[Detections]:
        return [self._found(each[:, :h, :w].float().numpy()) for each, (h, w) in zip(image, sizes, strict=True)]

    def _found(self, image: np.ndarray) -> Detections:
        from scipy import ndimage

        rows = []
        for label in range(2):
            regions, _ = ndimage.label(image[label] > 120)
            for y, x in ndimage.find_objects(regions):
                score = float(image[label, y, x].max()) / 255
                if score >= self.limits.score:
                    rows.append((x.start, y.start, x.stop, y.stop, score, label))
        table = torch.tensor(sorted(rows, key=lambda row: -row[4]), dtype=torch.float32).reshape(-1, 6)
        return Detections(table[:, :4], table[:, 5].long(), table[:, 4])


@remember
def spots(num_classes: int) -> Detector:
    return Spots(num_classes)


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(visionapps.models.DETECTORS, "spots", spots)  # type: ignore[arg-type]
    monkeypatch.setitem(visionapps.models.WIRINGS, "spots", spots)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    Bundle(spots(2), LABELS, 64, category_ids=(3, 7)).save(tmp_path / "bundle")
    return tmp_path / "bundle"


def scene(shape: tuple[int, int] = (200, 300)) -> np.ndarray:
    """(H, W, 3): a car that lies over seams of 64 px tiles, a large bus, and a small car that is not sure."""
    image = np.full((*shape, 3), 40, np.uint8)
    image[45:70, 55:90] = (255, 40, 40)
    image[100:140, 20:260] = (40, 204, 40)
    image[10:18, 200:212] = (153, 40, 40)
    return image


BOXES = [[55, 45, 90, 70], [20, 100, 260, 140], [200, 10, 212, 18]]


def write_raster(path: Path, image: np.ndarray, transform: Affine = HERE) -> None:
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "crs": CRS.from_epsg(32633), "transform": transform}
    with rasterio.open(path, "w", height=image.shape[0], width=image.shape[1], **profile) as file:
        file.write(np.moveaxis(image, -1, 0))


def predict(*words: object) -> int:
    return main(["predict", *map(str, words)])


def test_all_forms_of_photos_say_the_same(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    Image.fromarray(scene()).save(tmp_path / "photos" / "a.png")
    Image.fromarray(np.full((30, 40, 3), 40, np.uint8)).save(tmp_path / "photos" / "empty.png")
    out = tmp_path / "out"
    words = [bundle, tmp_path / "photos", "--out", out, "--form", "coco,yolo", "--form", "voc,csv,geojson", "--overlay"]
    assert predict(*words) == 0
    results = json.loads((out / "detections.json").read_text())
    assert [r["bbox"] for r in results] == [[x, y, a - x, b - y] for x, y, a, b in BOXES]
    assert [(r["category_id"], r["image_id"]) for r in results] == [(3, 1), (7, 1), (3, 1)]
    assert [r["score"] for r in results] == pytest.approx([1.0, 0.8, 0.6])
    images = json.loads((out / "images.json").read_text())
    assert [image["file_name"] for image in images["images"]] == ["a.png", "empty.png"]
    assert images["images"][0] | {"height": 200, "width": 300, "id": 1} == images["images"][0]
    assert images["categories"] == [{"id": 3, "name": "car"}, {"id": 7, "name": "bus"}]
    row = (out / "yolo" / "a.txt").read_text().splitlines()[0].split()
    assert [float(v) for v in row] == pytest.approx([0, 72.5 / 300, 57.5 / 200, 35 / 300, 25 / 200, 1.0])
    assert (out / "yolo" / "empty.txt").read_text() == ""
    assert "<name>bus</name>" in (out / "voc" / "a.xml").read_text()
    assert len((out / "detections.csv").read_text().splitlines()) >= 4
    assert len(json.loads((out / "a.geojson").read_text())["features"]) == 3
    with Image.open(out / "a_overlay.png") as picture:
        shown = np.asarray(picture)
    assert shown.shape == (200, 300, 3)
    assert shown[60, 55].tolist() == [250, 0, 0]  # the edge of the first box
    printed = capsys.readouterr().out
    assert "200 x 300" in printed
    assert "3 objects in 2 images" in printed
    assert predict(*words) == 1
    assert "exists already" in capsys.readouterr().err
    assert predict(*words, "--overwrite") == 0


def test_boxes_of_a_raster_lie_where_the_raster_lies(bundle: Path, tmp_path: Path) -> None:
    write_raster(tmp_path / "ortho.tif", scene())
    assert predict(bundle, tmp_path / "ortho.tif", "--out", tmp_path / "out") == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["ortho.gpkg"]
    meta, _, binary, columns = pyogrio.raw.read(tmp_path / "out" / "ortho.gpkg")
    assert CRS.from_user_input(meta["crs"]) == CRS.from_epsg(32633)
    x0, y0, x1, y1 = np.array(BOXES[0]) * 0.5
    assert shapely.bounds(shapely.from_wkb(binary)[0]).tolist() == [
        400000 + x0, 5000000 - y1, 400000 + x1, 5000000 - y0,
    ]  # fmt: skip
    assert dict(zip(meta["fields"], columns, strict=True))["class"].tolist() == ["car", "bus", "car"]


def test_a_raster_read_at_another_resolution_gives_boxes_in_its_own_pixels(bundle: Path, tmp_path: Path) -> None:
    big = scene().repeat(2, 0).repeat(2, 1)
    write_raster(tmp_path / "ortho.tif", big, HERE @ Affine.scale(0.5))
    words = [bundle, tmp_path / "ortho.tif", "--out", tmp_path / "out", "--gsd", 0.5, "--form", "coco,gpkg"]
    assert predict(*words) == 0
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert len(results) == 3
    found = sorted(r["bbox"] for r in results)
    expected = sorted([2 * x, 2 * y, 2 * (a - x), 2 * (b - y)] for x, y, a, b in BOXES)
    assert np.allclose(found, expected, atol=3)
    bounds = shapely.total_bounds(shapely.from_wkb(pyogrio.raw.read(tmp_path / "out" / "ortho.gpkg")[2]))
    assert bounds == pytest.approx([400010, 4999930, 400130, 4999995], abs=1)


def test_scores_choose_what_is_written(bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(scene()).save(tmp_path / "a.png")
    thresholds = tmp_path / "scores.json"
    for number, (content, options, expected) in enumerate(
        [
            (None, ["--score", "0.7"], [1.0, 0.8]),
            ({"car": 0.5, "bus": 0.9}, [], [1.0, 0.6]),
            ({"curves": {"thresholds": {"car": 0.9}}}, ["--score", "0.1"], [1.0, 0.8]),
        ]
    ):
        if content is not None:
            thresholds.write_text(json.dumps(content))
            options = [*options, "--score-per-class", str(thresholds)]
        assert predict(bundle, tmp_path / "a.png", "--out", tmp_path / str(number), *options) == 0
        results = json.loads((tmp_path / str(number) / "detections.json").read_text())
        assert [r["score"] for r in results] == pytest.approx(expected)


def test_tiles_batches_threads_and_merging_leave_the_answer_as_it_is(bundle: Path, tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", scene())
    outcomes = set()
    settings = ["", "--tile 32 --overlap 8", "--tile 256", "--batch 5 --threads 1", "--tile 64 --overlap 0 --merge wbf"]
    for number, text in enumerate(settings):
        out = tmp_path / str(number)
        assert predict(bundle, tmp_path / "a.tif", "--out", out, "--form", "coco", *text.split()) == 0
        outcomes.add((out / "detections.json").read_text())
    assert len(outcomes) == 1


def test_numbers_of_images_are_those_of_an_annotation_file(bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(scene()).save(tmp_path / "a.png")
    like = tmp_path / "like.json"
    like.write_text(json.dumps({"images": [{"id": 41, "file_name": "sub/a.png"}], "annotations": [], "categories": []}))
    assert predict(bundle, tmp_path / "a.png", "--out", tmp_path / "out", "--ids", like) == 0
    assert {r["image_id"] for r in json.loads((tmp_path / "out" / "detections.json").read_text())} == {41}


def test_one_bad_image_does_not_stop_the_others(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"no picture")
    Image.fromarray(scene()).save(tmp_path / "photos" / "b.png")
    assert predict(bundle, tmp_path / "photos", "--out", tmp_path / "out") == 1
    assert "1 of 2 files failed" in capsys.readouterr().err
    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {r["image_id"] for r in results} == {2}
    assert predict(bundle, tmp_path / "photos" / "a.png", "--out", tmp_path / "alone") == 1
    assert "a.png" in capsys.readouterr().err
    assert not (tmp_path / "alone").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--tta", "flips", "--vectors", "gpkg"], "leave out --vectors, --tta, which maps alone have"),
        (["--exact"], "holds a detector, which finds boxes; leave out --exact"),
        (["--form", "shp"], "--form shp: not known; use coco, yolo, voc, csv, gpkg, geojson, fgb"),
        (["--score", "1.5"], r"--score 1.5: must be in [0, 1)"),
        (["--nms", "0"], "nms 0.0 in (0, 1]"),
        (["--threads", "0"], "threads 0: at least 1"),
        (["--form", "yolo", "--ids", "x.json"], "only COCO files have numbers of images"),
        (["--score-per-class", "absent.json"], "absent.json: cannot be read as JSON"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    Image.fromarray(scene()).save(tmp_path / "a.png")
    assert predict(bundle, tmp_path / "a.png", "--out", tmp_path / "out", *words) == 1
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_options_of_detectors_are_refused_for_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Bundle(unet("resnet10t", 2, channels=(8, 8, 8, 8, 8)), LABELS, 64).save(tmp_path / "maps")
    Image.fromarray(scene()).save(tmp_path / "a.png")
    assert (
        predict(tmp_path / "maps", tmp_path / "a.png", "--out", tmp_path / "out", "--form", "coco", "--nms", 0.4) == 1
    )
    assert "holds no detector; leave out --form, --nms, which boxes alone have" in capsys.readouterr().err


def test_two_images_of_one_name_need_runs_of_their_own(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_raster(tmp_path / folder / "a.tif", scene())
    both = [tmp_path / "one" / "a.tif", tmp_path / "two" / "a.tif"]
    assert predict(bundle, *both, "--out", tmp_path / "out") == 1
    assert "would be drawn to it; predict them separately" in capsys.readouterr().err
    assert predict(bundle, *both, "--out", tmp_path / "out", "--form", "coco") == 0
    images = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["one/a.tif", "two/a.tif"]


def test_a_bundle_that_is_not_there_is_the_first_thing_that_is_told(tmp_path, capsys):
    assert main(["predict", str(tmp_path / "nothing"), "x.png", "--out", str(tmp_path / "o"), "--form", "coco"]) == 1
    assert "nothing: no such bundle; expected a folder that `visionapps export` wrote" in capsys.readouterr().err
