"""All files of a scene: the same bytes whatever happens on the way, and none where it goes wrong."""

import os
import weakref
from collections.abc import Sequence
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import rasterio
from forked import KILLED, Mortality, call_each, fill_disk_at
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.crs import CRS

from visionapps.errors import DataError, OutputError
from visionapps.inference.drawing import Drawing, Drawn, Job
from visionapps.inference.geotiff import MapOptions
from visionapps.inference.inputs import Input
from visionapps.inference.products import Band, Products
from visionapps.inference.sources import ArraySource
from visionapps.structures import GeoRef, InputSpec, LabelSpace
from visionapps.windows import Window

LABELS = LabelSpace(("roof", "road", "tree"), ((200, 0, 0), (0, 100, 0), (0, 0, 50)))
PRODUCTS = Products(("confidence",))
IDENTITY = {"source": "ortho.tif", "tile": 40}
HEIGHT, WIDTH, CUT = 630, 70, 90
ROWS = range(0, HEIGHT, CUT)


def source_of() -> ArraySource:
    image = np.random.default_rng(1).integers(0, 256, (3, HEIGHT, WIDTH), dtype=np.uint8)
    return ArraySource(image, georef=GeoRef(CRS.from_epsg(32633).to_wkt(), (1.0, 0, 4e5, 0, -1.0, 5e6)), name="ortho")


def planes_of() -> np.ndarray:
    """(2, H, W): labels with a region of no data, and a confidence."""
    rng = np.random.default_rng(2)
    planes = np.stack([rng.integers(0, 3, (HEIGHT, WIDTH)), rng.integers(0, 255, (HEIGHT, WIDTH))]).astype(np.uint8)
    planes[:, 200:300, 10:40] = 255
    return planes


def band_at(row: int) -> Band:
    window = Window(row, 0, min(CUT, HEIGHT - row), WIDTH)
    return Band(window, planes_of()[:, *window.slices].copy())


def job_in(folder: Path) -> Job:
    return Job(
        Input("ortho.tif", True), folder / "ortho.tif", folder / "ortho_overlay.tif", scores=folder / "ortho_scores.tif"
    )


def drawing_in(folder: Path, *, identity: dict[str, object] | None = None, overwrite: bool = False) -> Drawing:
    return Drawing(
        job_in(folder),
        source_of(),
        labels=LABELS,
        spec=InputSpec(),
        products=PRODUCTS,
        identity=identity,
        options=MapOptions(overwrite=overwrite, overviews=True),
    )


def draw(
    folder: Path,
    rows: Sequence[int] = ROWS,
    *,
    identity: dict[str, object] | None = None,
    overwrite: bool = False,
) -> Drawn:
    with drawing_in(folder, identity=identity, overwrite=overwrite) as drawing:
        for row in rows:
            if any(begin <= row < end for begin, end in drawing.missing):
                drawing.add(band_at(row))
        return drawing.finish()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run from top to bottom that nothing disturbs."""
    folder = tmp_path_factory.mktemp("expected")
    draw(folder)
    return contents(folder)


def test_all_files_show_what_the_bands_held(tmp_path: Path) -> None:
    drawn = draw(tmp_path, identity=IDENTITY)
    planes = planes_of()
    assert sorted(os.listdir(tmp_path)) == [
        "ortho.tif", "ortho.tif.aux.xml", "ortho_overlay.tif", "ortho_scores.tif",
    ]  # fmt: skip
    with rasterio.open(tmp_path / "ortho.tif") as file:
        assert np.array_equal(file.read(1), planes[0])
    with rasterio.open(tmp_path / "ortho_scores.tif") as file:
        assert np.array_equal(file.read(1), planes[1])
        assert file.descriptions == ("confidence",)
    with rasterio.open(tmp_path / "ortho_overlay.tif") as file:
        assert np.array_equal(file.read(4) > 0, planes[0] != 255)
    assert drawn.pixels == tuple((planes[0] == label).sum() for label in range(3))
    assert drawn.valid == pytest.approx((planes[0] != 255).mean())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(ROWS), kept=st.booleans(), twice=st.integers(0, HEIGHT // CUT - 1))
def test_bands_in_any_order_give_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, expected: dict[str, bytes], order: list[int], kept: bool, twice: int
) -> None:
    folder = tmp_path_factory.mktemp("order")
    with drawing_in(folder, identity=IDENTITY if kept else None) as drawing:
        for row in [*order[:-1], order[twice], order[-1]]:
            drawing.add(band_at(row))
        drawing.finish()
    assert contents(folder) == expected


def test_bands_that_come_early_wait_on_the_disk(tmp_path: Path) -> None:
    with drawing_in(tmp_path) as drawing:
        seen = []
        for row in reversed(ROWS):
            band = band_at(row)
            seen.append(weakref.ref(band.planes))
            drawing.add(band)
            del band
            assert seen[-1]() is None, "nobody holds its pixels"
        drawing.finish()


def test_a_scene_that_is_not_to_be_resumed_costs_no_journal(tmp_path: Path, expected: dict[str, bytes]) -> None:
    with drawing_in(tmp_path) as drawing:
        for row in ROWS:
            drawing.add(band_at(row))
            assert os.listdir(tmp_path) == [f".ortho.tif.part-{os.getpid()}"]
        drawing.finish()
    assert contents(tmp_path) == expected


@pytest.mark.parametrize("mistake", [DataError, KeyboardInterrupt])
@pytest.mark.parametrize("order", [ROWS, ROWS[::-1]])
def test_an_error_on_the_way_leaves_no_file_and_what_was_drawn_is_not_drawn_again(
    tmp_path: Path, expected: dict[str, bytes], mistake: type[BaseException], order: range
) -> None:
    def break_off(identity: dict[str, object] | None) -> None:
        with drawing_in(tmp_path, identity=identity) as drawing:
            for row in order[:4]:
                drawing.add(band_at(row))
            raise mistake("the source is broken")

    with pytest.raises(mistake):
        break_off(None)
    assert os.listdir(tmp_path) == []
    with pytest.raises(mistake):
        break_off(IDENTITY)
    assert os.listdir(tmp_path) == [".ortho.tif.journal"]
    with drawing_in(tmp_path, identity=IDENTITY) as drawing:
        assert drawing.missing == ([(360, 630)] if order == ROWS else [(0, 270)])
        for row in order[4:]:
            drawing.add(band_at(row))
        assert drawing.missing == []
        drawing.finish()
    assert contents(tmp_path) == expected


def test_files_asked_for_later_are_drawn_from_the_same_bands(tmp_path: Path, expected: dict[str, bytes]) -> None:
    first = Job(Input("ortho.tif", True), None, tmp_path / "ortho_overlay.tif")
    with Drawing(first, source_of(), labels=LABELS, spec=InputSpec(), products=PRODUCTS, identity=IDENTITY) as drawing:
        for row in ROWS:
            drawing.add(band_at(row))
    with drawing_in(tmp_path, identity=IDENTITY) as drawing:
        assert drawing.missing == []
        drawing.finish()
    assert contents(tmp_path) == expected


def test_photos_get_png_and_jpg(tmp_path: Path) -> None:
    job = Job(Input("a.jpg", False), tmp_path / "a.png", tmp_path / "a_overlay.jpg", scores=tmp_path / "a_scores.tif")
    with Drawing(job, source_of(), labels=LABELS, spec=InputSpec(), products=PRODUCTS) as drawing:
        drawing.add(Band(Window(0, 0, HEIGHT, WIDTH), planes_of()))
        drawing.finish()
    with Image.open(tmp_path / "a.png") as mask:
        assert np.array_equal(np.asarray(mask), planes_of()[0])
    assert sorted(os.listdir(tmp_path)) == ["a.png", "a_overlay.jpg", "a_scores.tif"]


def test_a_scene_without_a_valid_pixel_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    for identity in (None, IDENTITY):
        with drawing_in(tmp_path, identity=identity) as drawing:
            drawing.add(Band(Window(0, 0, HEIGHT, WIDTH), np.full((2, HEIGHT, WIDTH), 255, np.uint8)))
            with pytest.raises(DataError, match=r"ortho: no valid pixel, all are nodata or masked"):
                drawing.finish()
        assert os.listdir(tmp_path) == []


def test_existing_files_are_kept_unless_told_otherwise(tmp_path: Path, expected: dict[str, bytes]) -> None:
    (tmp_path / "ortho_scores.tif").write_text("precious")
    with pytest.raises(OutputError, match=r"ortho_scores.tif: exists already"):
        drawing_in(tmp_path)
    assert contents(tmp_path) == {"ortho_scores.tif": b"precious"}
    (tmp_path / "ortho_scores.tif.ovr").write_text("overviews of the old file")
    draw(tmp_path, overwrite=True)
    assert contents(tmp_path) == expected, "and side files that describe the old one are gone"


def test_a_folder_with_the_name_of_a_map_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "ortho.tif").mkdir()
    with pytest.raises(OutputError, match=r"ortho.tif: is a folder, but the result is a file"):
        drawing_in(tmp_path, overwrite=True)


def test_another_run_and_other_settings_are_refused_and_overwrite_begins_anew(
    tmp_path: Path, expected: dict[str, bytes]
) -> None:
    with drawing_in(tmp_path, identity=IDENTITY) as drawing:
        drawing.add(band_at(0))
        with pytest.raises(OutputError, match=r"another run .* draws this scene just now"):
            drawing_in(tmp_path, identity=IDENTITY)
    with pytest.raises(OutputError, match=r"tile was 40, is now 48"):
        drawing_in(tmp_path, identity={**IDENTITY, "tile": 48})
    draw(tmp_path, identity={**IDENTITY, "tile": 48}, overwrite=True)
    assert contents(tmp_path) == expected


def test_a_run_that_keeps_nothing_clears_what_another_one_kept(tmp_path: Path, expected: dict[str, bytes]) -> None:
    with drawing_in(tmp_path, identity=IDENTITY) as drawing:
        drawing.add(band_at(0))
    draw(tmp_path)
    assert contents(tmp_path) == expected


def draw_small(folder: Path, rows: Sequence[int]) -> str:
    """Draw a small scene; say what was wrong."""
    source = ArraySource(np.zeros((3, CUT * len(rows), WIDTH), np.uint8), name="small")
    job = Job(Input("s.tif", True), folder / "s.tif", None, scores=folder / "s_scores.tif")
    try:
        with Drawing(job, source, labels=LABELS, spec=InputSpec(), products=PRODUCTS, identity=IDENTITY) as drawing:
            for row in rows:
                if any(begin <= row < end for begin, end in drawing.missing):
                    drawing.add(band_at(row))
            drawing.finish()
    except OutputError as error:
        return str(error)
    return "drawn"


def draw_until_killed(folder: Path, rows: Sequence[int], fatal: int) -> str:
    Mortality(fatal)
    return draw_small(folder, rows)


def digests(folder: Path) -> str:
    """Of all files that are not hidden."""
    found = {name: md5(content).hexdigest() for name, content in contents(folder).items() if name[0] != "."}
    return " ".join(f"{name}={digest}" for name, digest in found.items())


def test_killed_at_any_moment_a_second_run_gives_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL instead of any one of the calls that change what is on the disk."""
    orders = {"upwards": (90, 0), "downwards": (0, 90)}
    steps = [("upwards", step) for step in range(1, 48)] + [("downwards", step) for step in range(2, 40, 5)]
    folders = [tmp_path / f"{order}{step}" for order, step in steps]
    draw_small(tmp_path / "whole", (0, 90))
    whole = digests(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path / "whole")) == ["s.tif", "s.tif.aux.xml", "s_scores.tif"]
    runs = [(folder, orders[order], fatal) for folder, (order, fatal) in zip(folders, steps, strict=True)]
    lines = call_each("test_drawing", "draw_until_killed", runs)
    for line, (folder, rows, _) in zip(lines, runs, strict=True):
        before = digests(folder)
        if line == KILLED:
            assert set(before.split()) <= set(whole.split()), f"{folder}: only whole files have their final names"
        said = draw_small(folder, rows)
        assert said == "drawn" or (before == whole and "exists already" in said), f"{folder}: {said}"
        assert digests(folder) == whole, folder
    killed = [line == KILLED for line in lines]
    assert killed[:25] == [True] * 25
    assert not killed[46], "there are fewer steps than tried"


def draw_on_a_small_disk(folder: Path, limit: int) -> str:
    fill_disk_at(limit)
    try:
        draw(folder, identity=IDENTITY)
    except OutputError as error:
        return f"refused: {error}|{','.join(sorted(os.listdir(folder)))}"
    return "written"


def test_a_full_disk_leaves_no_file_names_the_one_that_failed_and_costs_no_finished_band(
    tmp_path: Path, expected: dict[str, bytes]
) -> None:
    sizes = {name: len(content) for name, content in expected.items()}
    limits = [300, 9000, sizes["ortho.tif"] - 1, sizes["ortho_scores.tif"] - 1, sizes["ortho_overlay.tif"] - 1]
    lines = call_each("test_drawing", "draw_on_a_small_disk", [(tmp_path, limit) for limit in sorted(limits)])
    for line in lines:
        said, left = line.split("|")
        assert said.startswith(f"refused: {tmp_path}/"), line
        assert "files/" not in said, "the final name, not where it was being made"
        assert left in ("", ".ortho.tif.journal"), line
    assert lines[-1].startswith(f"refused: {tmp_path / 'ortho_overlay.tif'}: cannot be written (")
    with drawing_in(tmp_path, identity=IDENTITY) as drawing:
        assert drawing.missing == [], "only the files failed"
        drawing.finish()
    assert contents(tmp_path) == expected
