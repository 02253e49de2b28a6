"""The seam report against counts by a plain loop, and on maps whose seams are known."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from visionapps.cli.main import main
from visionapps.errors import ConfigError
from visionapps.inference.bundle import Bundle
from visionapps.inference.plan import Plan, exact_plan, fitted, plan, shifted
from visionapps.inference.products import Band
from visionapps.inference.seams import SeamReport, seam_report
from visionapps.models import unet
from visionapps.structures import LabelSpace
from visionapps.windows import Window


def bands_of(labels: np.ndarray, layout: Plan) -> list[Band]:
    """A map cut into the bands that an engine would give."""
    windows = [layout.band(i) for i in range(len(layout.rows.starts))]
    return [Band(window, labels[None, *window.slices]) for window in windows]


def report_of(first: np.ndarray, second: np.ndarray, layout: Plan, other: Plan) -> SeamReport:
    return seam_report(iter(bands_of(first, layout)), iter(bands_of(second, other)), layout, other)


def seams_of(layout: Plan, other: Plan) -> tuple[list[float], list[float]]:
    """Rows and columns in the middle of two neighbouring tiles' common pixels."""
    found: tuple[list[float], list[float]] = ([], [])
    for candidate in (layout, other):
        for axis, places in zip((candidate.rows, candidate.cols), found, strict=True):
            for i in range(1, len(axis.starts)):
                places.append((axis.extent(i)[0] + axis.extent(i - 1)[1]) / 2)
    return found


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 150),
    width=st.integers(65, 200),
    overlap=st.sampled_from([0, 8, 16, 32]),
    make=st.sampled_from([plan, fitted]),
    seed=st.integers(0, 99),
)
def test_every_pixel_is_counted_at_its_distance_to_the_nearest_seam(
    height: int, width: int, overlap: int, make: object, seed: int
) -> None:
    layout = make((height, width), tile=64, overlap=overlap, multiple=8)  # type: ignore[operator]
    other = shifted(layout, multiple=8)
    rng = np.random.default_rng(seed)
    first, second = (rng.choice(np.array([0, 1, 255], np.uint8), (height, width), p=[0.6, 0.3, 0.1]) for _ in "ab")
    report = report_of(first, second, layout, other)
    seam_rows, seam_cols = seams_of(layout, other)
    counted = dict.fromkeys((ring.begin for ring in report.rings), (0, 0))
    for y in range(height):
        for x in range(width):
            if first[y, x] == 255 or second[y, x] == 255:
                continue
            away = [abs(y + 0.5 - s) for s in seam_rows] + [abs(x + 0.5 - s) for s in seam_cols]
            (begin,) = (ring.begin for ring in report.rings if ring.begin <= min(away) < ring.end)
            pixels, differing = counted[begin]
            counted[begin] = (pixels + 1, differing + int(first[y, x] != second[y, x]))
    assert [(ring.pixels, ring.differing) for ring in report.rings] == list(counted.values())
    assert (report.rings[0].begin, report.rings[-1].end) == (0, math.inf)
    assert all(a.end == b.begin for a, b in zip(report.rings, report.rings[1:], strict=False))


def test_labels_that_change_only_where_tiles_meet_are_an_excess_and_equal_noise_is_none() -> None:
    layout = plan((600, 700), tile=256, overlap=32, multiple=32)
    other = shifted(layout)
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 5, (600, 700), dtype=np.uint8)
    noise = rng.random(truth.shape) < 0.02
    second = np.where(noise, (truth + 1) % 5, truth).astype(np.uint8)
    even = report_of(truth, second, layout, other)
    assert even.near == 16
    assert even.excess == pytest.approx(1, abs=0.15)
    assert even.everywhere.differing == noise.sum()
    assert even.everywhere.pixels == truth.size
    # A seam of the first lattice: columns 224 to 255 are shared by its first two tiles.
    seam = second.copy()
    seam[:, 232:248] = (truth[:, 232:248] + 1) % 5
    loud = report_of(truth, seam, layout, other)
    assert loud.interior == even.interior
    assert loud.excess is not None
    assert loud.excess > 3


def test_equal_maps_have_no_excess_and_an_overlap_of_half_a_tile_leaves_no_interior() -> None:
    labels = np.zeros((200, 300), np.uint8)
    layout = exact_plan((200, 300), tile=64, halo=4, multiple=4)
    report = report_of(labels, labels, layout, shifted(layout, multiple=4))
    assert report.seams.share == 0
    assert report.excess is None
    dense = plan((200, 300), tile=64, overlap=32, multiple=4)
    report = report_of(labels, labels, dense, shifted(dense, multiple=4))
    assert report.interior.pixels == 0
    assert report.interior.share is None


def test_maps_that_cannot_be_compared_are_named() -> None:
    one, large = (plan(shape, tile=64, overlap=0, multiple=32) for shape in ((50, 60), (500, 60)))
    with pytest.raises(ConfigError, match="one tile covers all 50 x 60 px, so there is no seam to measure"):
        seam_report([], [], one, one)
    with pytest.raises(ConfigError, match="compare maps of one scene"):
        seam_report([], [], one, large)
    labels = np.zeros((500, 60), np.uint8)
    with pytest.raises(AssertionError, match="the same rows"):
        seam_report(bands_of(labels, large)[:-1], [Band(Window(0, 0, 500, 60), labels[None])], large, large)


def test_the_verb_prints_a_table_and_names_what_cannot_be_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(4)
    model = unet("resnet10t", 3, channels=(8, 8, 8, 8, 8)).eval()
    Bundle(model, LabelSpace.named(("roof", "road", "tree")), 64).save(tmp_path / "bundle")
    pixels = np.random.default_rng(0).integers(0, 256, (220, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    words = ["seams", str(tmp_path / "bundle"), str(tmp_path / "photo.png"), "--device", "cpu"]
    assert main([*words, "--tile", "128", "--overlap", "32"]) == 0
    printed = capsys.readouterr().out
    assert "where tiles blend" in printed
    assert re.search(rf"everywhere +{220 * 300} +\d+ +\d+\.\d+%", printed)
    assert "times as often as in the interior" in printed or "far from all seams" in printed
    assert main(words) == 1
    assert "one tile covers all 220 x 300 px" in capsys.readouterr().err
