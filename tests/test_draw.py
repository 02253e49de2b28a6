"""From scenes to files: what is refused before anything is drawn, what a killed run leaves, what the summary says."""

import hashlib
import itertools
import json
import re
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import torch
from forked import KILLED, call_each
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.transform import Affine

from visionapps.cli.main import main
from visionapps.errors import ConfigError
from visionapps.inference.bundle import Bundle
from visionapps.inference.draw import file_hash, fingerprint, plan_jobs
from visionapps.inference.inputs import Input
from visionapps.inference.journal import Journal
from visionapps.inference.network import Network
from visionapps.inference.products import Band
from visionapps.models import unet
from visionapps.structures import LabelSpace
from visionapps.windows import Window

LABELS = LabelSpace(("roof", "road", "tree"), ((200, 0, 0), (0, 100, 0), (0, 0, 50)))
HEIGHT, WIDTH = 300, 200
TILES = ("--tile", "64", "--overlap", "16", "--batch", "1")


def draw_until_interrupted(words: list[str], death: signal.Signals) -> str:
    """The exit code of a command that is given a signal in the fifth row of four tiles."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the parent of all tests ignores
    compute, add = Network.__call__, Journal.add
    calls, kept = itertools.count(1), threading.Semaphore(0)

    def store(self: Journal, *band: Band) -> None:
        add(self, *band)
        kept.release()

    def call(self: Network, tiles: Any, full: int = 0) -> Any:
        if next(calls) == 17:
            for _ in range(3):  # the thread that writes may be behind; the row above what is missing is drawn again
                assert kept.acquire(timeout=60)
            signal.raise_signal(death)
        return compute(self, tiles, full=full)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Network, "__call__", call)
        patch.setattr(Journal, "add", store)
        return f"exit code {main(words)}"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("model") / "bundle"
    Bundle(unet("resnet10t", 3, channels=(8, 8, 8, 8, 8)).eval(), LABELS, 64).save(folder)
    return folder


@pytest.fixture(scope="module")
def raster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rasters") / "ortho.tif"
    small = np.random.default_rng(0).integers(0, 256, (HEIGHT // 20, WIDTH // 20, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    pixels = np.moveaxis(image, -1, 0).copy()
    pixels[:, :10] = 0
    profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": HEIGHT, "width": WIDTH, "nodata": 0}
    where = {"crs": CRS.from_epsg(32633), "transform": Affine(0.5, 0, 4e5, 0, -0.5, 5e6)}
    with rasterio.open(path, "w", **profile, **where) as file:
        file.write(pixels)
    return path


def predict(bundle: Path, raster: Path, out: Path, *more: str) -> int:
    return main(["predict", str(bundle), str(raster), "--out", str(out), *TILES, *more])


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was_and_gives_the_same_files(bundle, raster, tmp_path, capsys):

    def drawn() -> int:
        """Tiles that the last run looked at."""
        found = re.search(r"; ([0-9]+) tiles", capsys.readouterr().err)
        assert found
        return int(found[1])

    kinds = ("--kind", "both", "--vectors", "gpkg", "--scores", "entropy")
    assert predict(bundle, raster, tmp_path / "whole", *kinds) == 0
    whole = drawn()
    words = ["predict", str(bundle), str(raster), "--out", str(tmp_path / "killed"), *TILES, *kinds]
    assert call_each("test_draw", "draw_until_interrupted", [(words, signal.SIGKILL)]) == [KILLED]
    assert [path.name for path in (tmp_path / "killed").iterdir()] == [".ortho.tif.journal"], "nothing half-written"
    assert predict(bundle, raster, tmp_path / "killed", *kinds) == 0
    assert drawn() < whole, "the bands of the first rows were there already"
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_journal_of_other_settings_is_refused_and_names_the_difference(bundle, raster, tmp_path, capsys):
    words = ["predict", str(bundle), str(raster), "--out", str(tmp_path / "maps")]
    interrupted = call_each("test_draw", "draw_until_interrupted", [([*words, *TILES], signal.SIGINT)])
    assert interrupted == ["exit code 130"]
    assert main([*words, *TILES[:2], "--overlap", "8", *TILES[4:]]) == 1
    error = capsys.readouterr().err
    assert "overlap" in error
    assert "--overwrite" in error
    assert main([*words, *TILES, "--overwrite"]) == 0


def test_a_dry_run_says_what_it_would_take_and_draws_nothing(bundle, raster, tmp_path, capsys):
    assert predict(bundle, raster, tmp_path / "maps", "--dry-run") == 0
    printed = capsys.readouterr().out
    # Steps of 48: 6 tiles cover 300 - 16 rows, 4 cover 200 - 16 columns; 6 x 4 x 64 x 64 / 60,000 = 1.64.
    assert "6 x 4" in printed
    assert "1.64 pixels computed per pixel drawn" in printed
    assert "24 tiles" in printed
    assert "of computing on one device" in printed
    assert "MB beside the model" in printed
    assert not (tmp_path / "maps").exists()


def test_polygons_and_scores_come_out_of_the_same_pass(bundle, raster, tmp_path):
    kinds = ("--kind", "mask", "--vectors", "geojson", "--simplify", "0", "--scores", "probabilities")
    assert predict(bundle, raster, tmp_path, *kinds) == 0
    with rasterio.open(tmp_path / "ortho.tif") as mask, rasterio.open(tmp_path / "ortho_scores.tif") as scores:
        labels, planes = mask.read(1), scores.read()
        names = scores.descriptions
    assert names == ("confidence", "probability roof", "probability road", "probability tree")
    valid = labels != 255
    assert (planes[:, ~valid] == 255).all()
    best = planes[1:].max(0)
    assert (np.take_along_axis(planes[1:], np.where(valid, labels, 0)[None], 0)[0] == best)[valid].all()
    meta, _, _, columns = pyogrio.raw.read(tmp_path / "ortho.geojson")
    found = dict(zip(meta["fields"], columns, strict=True))
    for label, name in enumerate(LABELS.names):
        chosen = found["class"] == name
        assert found["pixels"][chosen].sum() == (labels == label).sum()
        # UTM shrinks lengths by up to 0.04 % and 5e6 m north lies near its central meridian's 0.9996.
        assert found["area_m2"][chosen].sum() == pytest.approx((labels == label).sum() * 0.25, rel=1e-3)


def test_views_members_and_scales_are_averaged_and_their_numbers_checked(bundle, raster, tmp_path, capsys):
    words = ["predict", str(bundle), str(raster), "--out", str(tmp_path)]
    better = ("--tta", "flips", "--scales", "0.5,1", "--member", str(bundle), "--weights", "2,1")
    assert main([*words, *better, "--scores", "disagreement"]) == 0
    assert main([*words, "--overwrite", "--weights", "1,2"]) == 1
    assert "--weights: 2 numbers for 1 bundles" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--scales", "1,x"]) == 1
    assert "--scales 1,x: expected numbers" in capsys.readouterr().err


def test_a_second_run_over_many_images_draws_only_what_is_missing(bundle, raster, tmp_path, capsys):
    images, maps = tmp_path / "images", tmp_path / "maps"
    images.mkdir()
    for name in "abc":
        Image.fromarray(np.full((40, 40, 3), ord(name), np.uint8)).save(images / f"{name}.png")
    words = ["predict", str(bundle), str(images), "--out", str(maps)]
    assert main(words) == 0
    (maps / "b.png").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in maps.iterdir()}
    assert main(words) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*words, "--skip-existing"]) == 0
    assert "b.png" in (out := capsys.readouterr().out)
    assert "a.png" not in out
    assert {name: (maps / name).stat().st_mtime_ns for name in before} == before
    assert main([*words, "--skip-existing"]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_nothing_to_draw_is_said(bundle, raster, tmp_path, capsys):
    assert predict(bundle, raster, tmp_path / "maps", "--kind", "none") == 1
    assert "--kind none draws nothing by itself; add --vectors or --scores" in capsys.readouterr().err


def test_two_inputs_never_share_an_output():
    twice = [Input("a/x.tif", True), Input("b/x.tif", True)]
    with pytest.raises(ConfigError, match=r"both a/x\.tif and b/x\.tif would be drawn to it"):
        plan_jobs(twice, Path("maps"))
    photo_and_raster = plan_jobs([Input("a/x.tif", True), Input("a/x.jpg", False)], Path("maps"))
    assert [job.outputs for job in photo_and_raster] == [(Path("maps/x.tif"),), (Path("maps/x.png"),)]


def test_the_fingerprint_changes_with_the_weights(bundle, tmp_path):
    torch.manual_seed(5)
    Bundle(unet("resnet10t", 3, channels=(8, 8, 8, 8, 8)).eval(), LABELS, 64).save(tmp_path / "other")
    assert fingerprint([bundle]) == fingerprint([bundle]) != fingerprint([tmp_path / "other"])
    assert fingerprint([bundle, tmp_path / "other"]) != fingerprint([tmp_path / "other", bundle])


def write_scene(path: Path, *, points: bool = False) -> None:
    """An image of 40 x 40; its place is told by a transform, or by control points only."""
    with rasterio.open(path, "w", driver="GTiff", dtype="uint8", count=3, height=40, width=40) as file:
        file.write(np.random.default_rng(0).integers(0, 256, (3, 40, 40), dtype=np.uint8))
        if points:
            corners = [GroundControlPoint(r, c, 10 + c / 1e3, 50 - r / 1e3) for r in (0, 40) for c in (0, 40)]
            file.gcps = corners, CRS.from_epsg(4326)
        else:
            file.crs, file.transform = CRS.from_epsg(32633), Affine(1, 0, 4e5, 0, -1, 5e6)


def test_a_scene_that_a_file_refuses_fails_alone(bundle, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for name in "abc":
        write_scene(images / f"{name}.tif", points=name == "b")
    words = ["predict", str(bundle), str(images), "--out", str(tmp_path / "maps"), "--vectors", "gpkg"]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert "b.tif: has ground control points and no transform" in error
    assert "1 of 3 files failed" in error
    assert sorted(path.name for path in (tmp_path / "maps").glob("*.gpkg")) == ["a.gpkg", "c.gpkg"]
    assert not (tmp_path / "maps" / "b.tif").exists(), "all files of a scene or none"


def test_a_journal_in_the_way_of_one_scene_does_not_stop_the_others(bundle, raster, tmp_path, capsys):
    images, maps = tmp_path / "images", tmp_path / "maps"
    images.mkdir()
    for name in ("a", "b"):
        (images / f"{name}.tif").write_bytes(raster.read_bytes())
    maps.mkdir()
    with Journal(maps / ".a.tif.journal", {"model": "another"}) as journal:
        journal.add(Band(Window(0, 0, 48, WIDTH), np.zeros((1, 48, WIDTH), np.uint8)))
    words = ["predict", str(bundle), str(images), "--out", str(maps), *TILES]
    assert main(words) == 1
    assert "a.tif" in (error := capsys.readouterr().err)
    assert "1 of 2 files failed" in error
    assert (maps / "b.tif").exists()
    assert not (maps / "a.tif").exists()


def test_an_edited_file_has_another_hash(tmp_path):
    one, other = tmp_path / "one.geojson", tmp_path / "other.geojson"
    one.write_text("{}")
    other.write_text("{} ")
    assert file_hash(one) == hashlib.sha256(b"{}").hexdigest() != file_hash(other)


def test_images_outside_of_the_area_are_counted_and_no_failure(bundle, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    write_scene(images / "here.tif")
    with rasterio.open(images / "there.tif", "w", driver="GTiff", dtype="uint8", count=3, height=40, width=40,
                       crs=CRS.from_epsg(32633), transform=Affine(1, 0, 5e5, 0, -1, 5e6)) as file:  # fmt: skip
        file.write(np.ones((3, 40, 40), np.uint8))
    ring = [[400010, 4999970], [400030, 4999970], [400030, 4999990], [400010, 4999990], [400010, 4999970]]
    area = {
        "type": "FeatureCollection",
        "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}},
        "features": [{"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}],
    }
    (tmp_path / "area.geojson").write_text(json.dumps(area))
    words = [
        "predict",
        str(bundle),
        str(images),
        "--out",
        str(tmp_path / "maps"),
        "--aoi",
        str(tmp_path / "area.geojson"),
    ]
    assert main(words) == 0
    assert "1 of 2 images lie outside of" in capsys.readouterr().err
    with rasterio.open(tmp_path / "maps" / "here.tif") as file:
        valid = file.read(1) != 255
    expected = np.zeros((40, 40), bool)
    expected[10:30, 10:30] = True
    assert np.array_equal(valid, expected)


def test_skipping_existing_files_draws_the_missing_ones_of_an_image(bundle, raster, tmp_path):
    assert predict(bundle, raster, tmp_path) == 0
    before = (tmp_path / "ortho.tif").stat().st_mtime_ns
    assert predict(bundle, raster, tmp_path, "--skip-existing", "--vectors", "gpkg") == 0
    assert (tmp_path / "ortho.gpkg").exists()
    assert (tmp_path / "ortho.tif").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--exact", "--tta", "flips"], "leave out --tta and --scales, or --exact"),
        (["--exact", "--overlap", "8"], "leave out --overlap"),
        (["--threads", "0"], "threads 0: at least 1 must decode pixels"),
        (["--vectors", "gpkg", "--vector-classes", "lake"], "no class lake; there are roof, road, tree"),
        (["--devices", "cpu,cpu", "--workers", "2"], "leave out --workers and --ray"),
        (["--scores", "certainty"], "certainty unknown; choose from confidence, entropy"),
        (["--scores", "disagreement"], "give several models, or --tta flips"),
        (["--tile", "50"], "tile 50 px: must be a multiple of the model's stride 32"),
        (["--device", "gpu"], "device 'gpu': not usable here"),
    ],
)
def test_wrong_options_are_answered_by_what_to_do(bundle, raster, tmp_path, capsys, words, reason):
    assert main(["predict", str(bundle), str(raster), "--out", str(tmp_path / "maps"), *words]) == 1
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "maps").exists()
