"""Run lengths against a loop over pixels written here, pycocotools, and strings written by hand."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from visionapps import masks
from visionapps.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside pycocotools

ORDERS = pytest.mark.parametrize("order", ["row", "column"])
orders = st.sampled_from(["row", "column"])
shapes = st.tuples(st.integers(1, 13), st.integers(1, 13))
label_maps = shapes.flatmap(
    lambda shape: hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.int32, np.int64]), shape, elements=st.integers(0, 3)
    )
)


def loop_runs(mask: np.ndarray, order: str, base: int) -> list[list[int]]:
    """The reference: look at every pixel in turn."""
    height, width = mask.shape
    if order == "row":
        pixels = [bool(mask[r, c]) for r in range(height) for c in range(width)]
    else:
        pixels = [bool(mask[r, c]) for c in range(width) for r in range(height)]
    runs: list[list[int]] = []
    inside = False
    for i, pixel in enumerate(pixels):
        if pixel and inside:
            runs[-1][1] += 1
        elif pixel:
            runs.append([i + base, 1])
        inside = pixel
    return runs


@pytest.fixture(params=[1, 3, 1 << 10], ids=["chunks of 1", "chunks of 3", "one chunk"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small chunks, so that a run crosses their borders even in a tiny mask."""
    monkeypatch.setattr("visionapps.masks.runs._CHUNK", request.param)
    monkeypatch.setattr("visionapps.masks.runs._RUNS", request.param)
    monkeypatch.setattr("visionapps.masks.text._RUNS", request.param)


@pytest.mark.usefixtures("chunk")
class TestAgainstALoop:
    @settings(max_examples=60, deadline=None)
    @given(labels=label_maps, order=orders, base=st.integers(0, 1))
    def test_encode_finds_the_runs_of_everything_but_zero(self, labels, order, base):
        assert masks.encode(labels, order=order, base=base).tolist() == loop_runs(labels, order, base)

    @settings(max_examples=60, deadline=None)
    @given(labels=label_maps, order=orders, base=st.integers(0, 1))
    def test_all_classes_in_one_pass_equal_one_pass_per_class(self, labels, order, base):
        wanted = [2, 0, 3, 7, 300, -1]
        found = masks.encode_labels(labels, wanted, order=order, base=base)
        assert [runs.tolist() for runs in found] == [loop_runs(labels == label, order, base) for label in wanted]

    @settings(max_examples=60, deadline=None)
    @given(labels=label_maps, order=orders)
    def test_memory_layout_does_not_matter(self, labels, order):
        expected = loop_runs(labels, order, 1)
        spread = np.repeat(np.repeat(labels, 2, axis=0), 3, axis=1)[::2, ::3]
        for layout in (np.asfortranarray(labels), spread, labels.T.copy().T):
            assert masks.encode(layout, order=order).tolist() == expected

    @settings(max_examples=60, deadline=None)
    @given(labels=label_maps, order=orders, base=st.integers(0, 1), relative=st.booleans())
    def test_text_and_back_gives_the_same_label_map(self, labels, order, base, relative):
        runs = masks.encode_labels(labels, [1, 2, 3], order=order, base=base)
        texts = [masks.format_runs(r, relative=relative) for r in runs]
        parsed = {i: masks.parse_runs(text, relative=relative) for i, text in enumerate(texts, 1)}
        np.testing.assert_array_equal(masks.decode_labels(parsed, labels.shape, order=order, base=base), labels)


@settings(max_examples=150, deadline=None)
@given(labels=label_maps)
def test_column_runs_make_the_very_string_of_pycocotools(labels):
    packed = coco.encode(np.asfortranarray(labels != 0).astype(np.uint8, order="F"))
    runs = masks.encode(labels, order="column")
    assert masks.runs_to_coco(runs, labels.shape) == {"size": packed["size"], "counts": packed["counts"].decode()}
    assert masks.coco_to_runs(packed).tolist() == runs.tolist()
    assert masks.decode(runs, labels.shape, order="column").tolist() == coco.decode(packed).astype(bool).tolist()


def test_long_coco_counts_are_read_as_pycocotools_reads_them():
    rng = np.random.default_rng(0)
    mask = np.kron(rng.integers(0, 2, (9, 11)), np.ones((173, 211), int))  # runs of many thousand pixels
    packed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert masks.coco_to_runs(packed, base=0).tolist() == loop_runs(mask, "column", 0)


def test_uncompressed_coco_counts_are_read_too():
    assert masks.coco_to_runs({"size": [3, 3], "counts": [4, 2, 3]}).tolist() == [[5, 2]]
    assert masks.coco_to_runs({"size": [3, 3], "counts": [0, 9]}).tolist() == [[1, 9]]


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({"size": [3, 3], "counts": [4, 2]}, "add up to 6 pixels, but the size 3 x 3 has 9"),
        ({"size": [3, 3], "counts": [4, 50]}, "add up to 54 pixels"),
        ({"size": [3, 3], "counts": [4, -2, 7]}, "count -2 is negative"),
        ({"size": [3, 3], "counts": "PPP"}, "cut off"),
        ({"size": [3, 3], "counts": "\x01"}, "foreign characters"),
        ({"size": [3], "counts": "4"}, "size [H, W] and counts are expected"),
        ({"counts": "4"}, "'size'"),
    ],
)
def test_broken_coco_masks_are_refused(rle, message):
    with pytest.raises(DataError) as caught:
        masks.coco_to_runs(rle)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "order", "text"),
    [
        (["000", "000"], "row", ""),
        (["111", "111"], "row", "1 6"),
        (["111", "111"], "column", "1 6"),
        (["100", "000"], "row", "1 1"),
        (["000", "001"], "row", "6 1"),
        (["000", "001"], "column", "6 1"),
        (["001", "100"], "row", "3 2"),  # goes on from the end of one line to the next
        (["001", "100"], "column", "2 1 5 1"),
        (["011", "110"], "column", "2 4"),
        (["10110"], "row", "1 1 3 2"),
        (["10110"], "column", "1 1 3 2"),
        (["1", "0", "1", "1"], "row", "1 1 3 2"),
        (["1", "0", "1", "1"], "column", "1 1 3 2"),
    ],
)
def test_small_masks_give_the_text_written_by_hand(rows, order, text):
    mask = np.array([[c == "1" for c in row] for row in rows])
    assert masks.format_runs(masks.encode(mask, order=order)) == text
    assert masks.decode(masks.parse_runs(text), mask.shape, order=order).tolist() == mask.tolist()


def test_relative_starts_count_from_the_end_of_the_run_before():
    runs = np.array([[4, 2], [10, 1], [11, 3]])
    assert masks.format_runs(runs, relative=True) == "4 2 4 1 0 3"
    assert masks.parse_runs("4 2 4 1 0 3", relative=True).tolist() == runs.tolist()
    assert runs.tolist() == [[4, 2], [10, 1], [11, 3]], "the argument stays as it was"


def test_touching_runs_in_a_text_are_legal():
    assert masks.decode(masks.parse_runs("1 2 3 2"), (1, 5), order="row").tolist() == [[True] * 4 + [False]]


def test_a_mask_without_pixels_has_no_runs():
    assert masks.encode(np.zeros((0, 5), bool), order="row").shape == (0, 2)
    assert masks.encode_labels(np.zeros((5, 0), np.uint8), [0, 1], order="column")[0].shape == (0, 2)


@ORDERS
@pytest.mark.parametrize(
    ("text", "base", "message"),
    [
        ("5", 1, "run 1: start 5 has no length"),
        ("1 2 7", 1, "run 2: start 7 has no length; an even count of numbers is expected, got 3"),
        ("1 2 x 3", 1, "run 2: 'x' is no whole number"),
        ("1 2.5", 1, "run 1: '2.5' is no whole number"),
        ("1 1_0", 1, "run 1: '1_0' is no whole number"),
        ("99999999999999999999 1", 1, "run 1: '99999999999999999999' is no whole number"),
        ("3 0", 1, "run 1 (3 0): length 0, but a run has at least one pixel"),
        ("3 2 7 -1", 1, "run 2 (7 -1): length -1"),
        ("0 2", 1, "run 1 (0 2): start 0, but the first pixel has number 1; check base 0 or 1"),
        ("-3 2", 0, "run 1 (-3 2): start -3, but the first pixel has number 0"),
        ("1 2 11 3", 1, "run 2 (11 3): ends at pixel 13, but the last pixel is 12"),
        ("11 2", 0, "run 1 (11 2): ends at pixel 12, but the last pixel is 11"),
        ("1 9223372036854775807", 1, "run 1 (1 9223372036854775807): ends at pixel"),
        ("1 4 4 2", 1, "run 2 (4 2): starts before run 1 ends at pixel 4; runs must ascend without overlap"),
        ("6 2 1 2", 1, "run 2 (1 2): starts before run 1 ends at pixel 7"),
    ],
)
def test_malformed_text_is_refused_and_the_run_named(text, base, message, order):
    with pytest.raises(DataError) as caught:
        masks.decode(masks.parse_runs(text), (3, 4), order=order, base=base)
    assert message in str(caught.value)


def test_the_last_pixel_may_be_used_and_the_one_after_may_not():
    assert masks.decode(masks.parse_runs("12 1"), (3, 4), order="row")[2, 3]
    assert masks.decode(masks.parse_runs("11 1"), (3, 4), order="row", base=0)[2, 3]
    with pytest.raises(DataError, match="last pixel is 12"):
        masks.decode(masks.parse_runs("13 1"), (3, 4), order="row")


def test_classes_that_claim_the_same_pixel_are_refused():
    runs = {1: np.array([[1, 3]]), 4: np.array([[3, 2]])}
    with pytest.raises(DataError, match="labels 1 and 4 both claim pixel 3; classes overlap"):
        masks.decode_labels(runs, (2, 4), order="row")


def test_without_a_size_only_the_order_of_runs_is_checked():
    masks.check_runs(np.array([[1, 2], [10**12, 5]]), None)
    with pytest.raises(DataError, match="must ascend"):
        masks.check_runs(np.array([[1, 2], [2, 5]]), None)


@pytest.mark.parametrize("mask", [np.zeros((2, 2), np.float32), np.zeros((2, 2, 1), np.uint8), np.zeros(4, bool)])
def test_floats_and_other_dimensions_are_refused(mask):
    with pytest.raises(DataError, match="a two-dimensional map of bool or integers is expected"):
        masks.encode(mask, order="row")


@ORDERS
def test_encoding_needs_less_than_a_tenth_of_a_byte_a_pixel_beside_the_runs(order):
    mask = np.zeros((6000, 6000), np.uint8)
    mask[1000:5000, 500:900] = 3
    tracemalloc.start()
    found = masks.encode_labels(mask, range(10), order=order)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert int(found[3][:, 1].sum()) == 4000 * 400
    assert peak < 0.1 * mask.size


@ORDERS
def test_decoding_needs_a_quarter_of_a_byte_a_pixel_beside_the_mask(order):
    shape = (3000, 4000)
    starts = np.arange(1, 12_000_000, 240)
    runs = np.stack([starts, np.full(len(starts), 70)], axis=1)
    runs[-1] = 11_999_761, 240  # the last pixel, too
    tracemalloc.start()
    mask = masks.decode(runs, shape, order=order)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert mask[-1, -1]
    assert int(mask.sum()) == 70 * (len(runs) - 1) + 240
    assert peak < (1 + 0.25) * mask.size, "a chunk of 2**20 pixels and what belongs to 2**15 runs"


def test_long_runs_and_long_gaps_are_painted_between_short_ones():
    flat = np.zeros(5_000_000, np.uint8)
    for start, end in ((0, 1), (2, 3_000_000), (3_000_001, 3_000_004), (4_900_000, 5_000_000)):
        flat[start:end] = 1
    mask = flat.reshape(2000, 2500)
    for order in ("row", "column"):
        np.testing.assert_array_equal(masks.decode(masks.encode(mask, order=order), mask.shape, order=order), mask)


def test_the_codec_imports_numpy_only():
    code = "import sys, visionapps.masks; print(sorted({'torch', 'pycocotools', 'PIL', 'scipy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
