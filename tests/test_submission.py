"""Submissions against a decoder written here in plain Python, Pillow's own resize, and files broken by hand."""

import csv
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from visionapps.errors import ConfigError, DataError, OutputError
from visionapps.inference.dialects import HRUD, KAGGLE, Dialect, dialect_from_dict, load_dialect
from visionapps.inference.submission import (
    mask_files,
    match_sample,
    read_masks,
    read_submission,
    resize_nearest,
    verify,
    write_submission,
)

SMALL = Dialect(order="row", row_id="{id}_{class}", header=("id", "rle"))
SIIM = Dialect(order="column", base=0, relative=True, empty="-1")


def blobs(height: int, width: int, labels: int, seed: int) -> np.ndarray:
    """A label map of rectangles, a few pixels of noise, and a label in its very last pixel."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    for _ in range(12):
        r, c = rng.integers(0, height), rng.integers(0, width)
        mask[r : r + height // 3 + 1, c : c + width // 3 + 1] = rng.integers(0, labels)
    mask[rng.integers(0, height, 40), rng.integers(0, width, 40)] = rng.integers(0, labels, 40)
    mask[-1, -1] = labels - 1
    return mask


def plain_decode(text: str, height: int, width: int) -> list[bytearray]:
    """Row-major, 1-based runs to rows of bytes, one pixel at a time: nothing of the package is used."""
    flat = bytearray(height * width)
    numbers = [int(word) for word in text.split(" ")] if text else []
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        for pixel in range(start, start + length):
            assert flat[pixel - 1] == 0, "runs overlap"
            flat[pixel - 1] = 1
    return [flat[row * width : (row + 1) * width] for row in range(height)]


def save_masks(folder: Path, masks: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    for name, mask in masks.items():
        Image.fromarray(mask).save(folder / f"{name}.png", compress_level=1)
    return folder


def test_a_submission_for_made_up_hrud_images_passes_an_independent_decoder(tmp_path):
    masks = {
        "6411_mask": blobs(3000, 4000, 25, seed=1),
        "8389": blobs(307, 459, 25, seed=2),
        "10172_x_2": np.zeros((30, 40), np.uint8),
    }
    folder = save_masks(tmp_path / "test_masks", masks)
    out = tmp_path / "submission.csv"
    report = write_submission(read_masks(mask_files(folder)), out, dialect=HRUD)
    # No cell holds a comma or a quote, so that even the csv module is not needed to read it.
    header, *rows = [line.split(",") for line in out.read_text().splitlines()]
    assert header == ["ImageClassId", "rle_mask"]
    assert [row[0] for row in rows] == [f"{i}_{k}" for i in ("10172", "6411", "8389") for k in range(1, 25)]
    texts = dict(rows)
    for name, mask in masks.items():
        image = name.split("_")[0]
        height, width = mask.shape
        # By hand: the pixel i of 1024 takes the source pixel under its centre.
        rows_by_hand = [int((i + 0.5) * height / 1024) for i in range(1024)]
        columns_by_hand = [int((j + 0.5) * width / 1024) for j in range(1024)]
        by_hand = mask[np.ix_(rows_by_hand, columns_by_hand)]
        decoded = np.zeros((1024, 1024), np.uint8)
        for label in range(1, 25):
            decoded += np.frombuffer(b"".join(plain_decode(texts[f"{image}_{label}"], 1024, 1024)), np.uint8).reshape(
                1024, 1024
            ) * np.uint8(label)
        np.testing.assert_array_equal(decoded, by_hand)
        np.testing.assert_array_equal(decoded, Image.fromarray(mask).resize((1024, 1024), Image.Resampling.NEAREST))
    assert all(texts[f"10172_{k}"] == "" for k in range(1, 25))
    assert (report.rows, report.images, report.labels, report.compared) == (72, 3, 24, 3)
    assert report.filled == sum(row[1] != "" for row in rows) >= 24


def by_pillow(full: int, count: int) -> np.ndarray:
    """Which pixels of a line Pillow takes."""
    line = Image.fromarray(np.arange(full, dtype=np.int32)[None])
    return np.asarray(line.resize((count, 1), Image.Resampling.NEAREST))[0]


@settings(max_examples=80, deadline=None)
@given(full=st.integers(1, 6000), count=st.integers(1, 2000))
# Whole lines of pixels whose centres fall on edges, where only the order in which Pillow adds tells what it takes.
@example(full=700, count=1050)
@example(full=2552, count=1911)
@example(full=1, count=2000)
@example(full=3, count=6)
def test_resizing_takes_the_pixels_that_pillow_takes_whatever_the_sizes(full, count):
    line = np.arange(full)[None]
    np.testing.assert_array_equal(resize_nearest(line, (1, count))[0], by_pillow(full, count))
    np.testing.assert_array_equal(resize_nearest(line.T, (count, 1))[:, 0], by_pillow(full, count))


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.integers(1, 300)] * 2), st.tuples(*[st.integers(1, 300)] * 2))
def test_rows_and_columns_are_resized_each_by_its_own_scale(size, target):
    mask = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    expected = np.asarray(Image.fromarray(mask).resize(target[::-1], Image.Resampling.NEAREST))
    np.testing.assert_array_equal(resize_nearest(mask, target), expected)


@pytest.mark.parametrize("full", [3000, 3072, 4000, 4592])
def test_the_sides_of_hrud_photos_shrink_as_in_pillow(full):
    ramp = np.arange(full, dtype=np.int32)[None]
    np.testing.assert_array_equal(resize_nearest(ramp, (1, 1024))[0], by_pillow(full, 1024))


def test_kaggle_rows_are_read_by_column_and_counted_from_one(tmp_path):
    masks = [("a", np.array([[0, 1], [2, 1]])), ("b", np.zeros((2, 2), np.uint8))]
    report = write_submission(masks, tmp_path / "s.csv", dialect=KAGGLE)
    assert (tmp_path / "s.csv").read_text() == "ImageId,EncodedPixels\na,2 3\nb,\n"
    assert (report.rows, report.images, report.labels, report.filled) == (2, 2, 1, 1)


def test_relative_starts_and_an_empty_token_as_in_siim(tmp_path):
    masks = [("a", np.array([[0, 1, 0], [1, 0, 1]])), ("b", np.zeros((2, 2), np.uint8))]
    write_submission(masks, tmp_path / "s.csv", dialect=SIIM)
    # By column: 0 1 | 1 0 | 0 1: three pixels after the gap of one; two more; then one.
    assert (tmp_path / "s.csv").read_text() == "ImageId,EncodedPixels\na,1 2 2 1\nb,-1\n"
    assert [row.text for row in read_submission(tmp_path / "s.csv", SIIM)] == ["1 2 2 1", ""]


def test_labels_name_the_rows_and_void_is_written_nowhere(tmp_path):
    mask = np.array([[0, 1, 3, 255]], np.uint8)
    dialect = Dialect(order="row", row_id="{id}.jpg_{class}", labels=(3, 0))
    write_submission([("x", mask)], tmp_path / "s.csv", dialect=dialect, classes=4)
    assert (tmp_path / "s.csv").read_text() == "ImageId,EncodedPixels\nx.jpg_3,3 1\nx.jpg_0,1 1\n"


def test_masks_of_0_and_255_are_refused_until_255_is_named_foreground(tmp_path):
    masks = [("x", np.array([[0, 255]], np.uint8))]
    with pytest.raises(DataError, match=r"all 1 masks hold only background and 255, .* --labels 255"):
        write_submission(masks, tmp_path / "s.csv", dialect=KAGGLE)
    assert list(tmp_path.iterdir()) == []
    write_submission(masks, tmp_path / "s.csv", dialect=Dialect(order="column", labels=(255,)))
    assert (tmp_path / "s.csv").read_text().splitlines()[1] == "x,2 1"


def test_a_mask_longer_than_the_csv_module_allows_by_default_comes_back(tmp_path):
    checks = np.indices((400, 400)).sum(0) % 2
    write_submission([("x", checks)], tmp_path / "s.csv", dialect=KAGGLE)
    assert len((tmp_path / "s.csv").read_text()) > 400_000
    limit = csv.field_size_limit()
    assert verify(tmp_path / "s.csv", KAGGLE, masks=[("x", checks)]).problems == ()
    assert csv.field_size_limit() == limit == 131_072, "a setting of the whole process stays as it was"


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3),
    order=st.sampled_from(["row", "column"]),
    base=st.integers(0, 1),
    relative=st.booleans(),
    row_id=st.sampled_from(["{id}", "{id}_{class}", "{class}/{id}"]),
    resize=st.sampled_from([None, (5, 7)]),
    seed=st.integers(0, 999),
)
def test_any_dialect_reads_back_and_verifies(tmp_path_factory, sizes, order, base, relative, row_id, resize, seed):
    dialect = Dialect(order=order, base=base, relative=relative, row_id=row_id, resize=resize, empty="-1")
    masks = [(f"im_{i}", blobs(*size, 4, seed + i)) for i, size in enumerate(sizes)]
    path = tmp_path_factory.mktemp("any") / "s.csv"
    report = write_submission(masks, path, dialect=dialect, classes=4)
    checked = verify(path, dialect, classes=4, masks=masks)
    assert checked.problems == ()
    assert checked.compared == report.images == len(sizes)
    # Every pixel of the original masks counts: one changed pixel is found.
    name, mask = masks[0]
    other = resize_nearest(mask, resize).copy() if resize else mask.copy()
    other[0, -1] = (other[0, -1] + 1) % 4 if dialect.per_class else other[0, -1] == 0
    problems = verify(path, dialect, classes=4, masks=[(name, other)]).problems
    assert len(problems) == 1
    assert f"image im_0: 1 of {other.size} pixels differ from the mask, the first at row 0, column" in problems[0]


def write_text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


class TestSample:
    def sample(self, tmp_path, ids, header="id,rle"):
        return write_text(tmp_path / "sample_submission.csv", "\n".join([header, *(f"{i}," for i in ids)]) + "\n")

    masks = (("a", np.array([[1, 2]])), ("b", np.array([[0, 1]])))

    def test_its_order_is_kept_and_masks_it_does_not_name_are_left_out(self, tmp_path):
        sample = self.sample(tmp_path, ["b_2", "b_1"])
        report = write_submission(self.masks, tmp_path / "s.csv", dialect=SMALL, classes=3, sample=sample)
        assert (tmp_path / "s.csv").read_text() == "id,rle\nb_2,\nb_1,2 1\n"
        assert (report.left_out, report.images) == (1, 1)
        assert verify(tmp_path / "s.csv", SMALL, classes=3, sample=sample).problems == ()

    def test_ids_without_a_mask_are_listed_and_nothing_is_written(self, tmp_path):
        sample = self.sample(tmp_path, ["a_1", "a_2", *(f"z{i}_{k}" for i in range(4) for k in (1, 2))])
        message = r"8 of 10 ids have no mask: z0_1, z0_2, z1_1, z1_2, z2_1, \.\.\.; predict those images too"
        with pytest.raises(DataError, match=message):
            write_submission(self.masks, tmp_path / "s.csv", dialect=SMALL, classes=3, sample=sample)
        with pytest.raises(DataError, match=message):
            match_sample(["a", "b"], SMALL, sample=sample, classes=3)
        assert [p.name for p in tmp_path.iterdir()] == ["sample_submission.csv"]

    def test_a_sample_with_fewer_classes_is_refused(self, tmp_path):
        sample = self.sample(tmp_path, ["a_1", "b_1", "b_2"])
        with pytest.raises(DataError, match="lacks 1 rows of images that it names: a_2; check --classes"):
            write_submission(self.masks, tmp_path / "s.csv", dialect=SMALL, classes=3, sample=sample)

    @pytest.mark.parametrize(
        ("ids", "header", "error", "message"),
        [
            (["a_1"], "Id,rle", ConfigError, "header 'Id,rle', but the dialect writes 'id,rle'"),
            (["a"], "id,rle", ConfigError, r"id 'a' does not have the form \{id\}_\{class\}; choose another dialect"),
            (["a_1", "a_1"], "id,rle", DataError, "a_1 stand there more than once"),
            ([], "id,rle", DataError, "holds a header and no row"),
        ],
    )
    def test_a_sample_of_another_kind_is_refused(self, tmp_path, ids, header, error, message):
        with pytest.raises(error, match=message):
            match_sample(["a"], SMALL, sample=self.sample(tmp_path, ids, header), classes=2)

    def test_verification_reports_rows_missing_extra_and_out_of_order(self, tmp_path):
        path = write_text(tmp_path / "s.csv", "id,rle\na_1,1 1\na_2,2 1\n")
        assert verify(path, SMALL, sample=self.sample(tmp_path, ["a_2", "a_1"])).problems == (
            "rows are in another order than in the sample, first row 1: a_1, not a_2",
        )
        assert verify(path, SMALL, sample=self.sample(tmp_path, ["a_1", "c_2"])).problems == (
            "1 rows are missing: c_2",
            "1 rows are not in the sample: a_2",
        )


def test_verification_lists_every_problem_and_not_only_the_first(tmp_path):
    lines = [
        "id,RLE",
        "a_1,1 2",
        "a_2,2 1",
        "b_1,1",
        "b_2,5 1",
        "b_2,5 1",
        "c_1,1 2 2 2",
        "c_9,",
        "nonsense,1 1",
        "d_1",
    ]
    path = write_text(tmp_path / "s.csv", "\n".join(lines))
    dialect = Dialect(order="row", row_id="{id}_{class}", header=("id", "rle"), labels=(1, 2), resize=(2, 2))
    report = verify(path, dialect)
    assert report.problems == (
        "line 1: header 'id,RLE', but 'id,rle' is expected",
        "line 9: id 'nonsense' does not have the form {id}_{class}",
        "line 10: 1 columns, but 2 are expected (id, rle)",
        "1 ids stand there more than once: b_2",
        "1 rows are missing: c_2",
        "line 4 (b_1): run 1: start 1 has no length; an even count of numbers is expected, got 1; "
        "the text may be cut off",
        "line 5 (b_2): run 1 (5 1): ends at pixel 5, but the last pixel is 4; check size and base",
        "line 7 (c_1): run 2 (2 2): starts before run 1 ends at pixel 2; runs must ascend without overlap",
        "line 8 (c_9): label 9 has no rows in this dialect",
        "image a: labels 1 and 2 both claim pixel 2; classes overlap",
    )
    assert (report.rows, report.images, report.filled) == (7, 3, 6)


def test_a_mask_tells_the_size_that_the_dialect_leaves_open(tmp_path):
    path = write_text(tmp_path / "s.csv", "ImageId,EncodedPixels\na,4 2\n")
    assert verify(path, KAGGLE).problems == ()
    (problem,) = verify(path, KAGGLE, masks=[("a", np.ones((2, 2)).astype(int))]).problems
    assert "image a: label 1, run 1 (4 2): ends at pixel 5, but the last pixel is 4" in problem
    (problem,) = verify(path, KAGGLE, masks=[("b", np.ones((2, 2)).astype(int))]).problems
    assert problem == "image b: cannot be compared with its mask, no row of it can be used"


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([("x", np.array([[9, 1]]))], "x: mask has label 9, but the labels here are 0 to 2 and 255 for void; give"),
        ([("x", np.array([[-1, 1]]))], "x: mask has label -1"),
        ([("x", np.array([[1, 700]]))], "x: mask has label 700"),
        ([("x", np.zeros((2, 2, 3), np.uint8))], "x: mask of shape (2, 2, 3) and uint8; a map of (H, W) labels"),
        ([("x", np.zeros((2, 2)))], "x: mask of shape (2, 2) and float64"),
        ([], "there was no mask to write"),
        ([("q_1", np.eye(2, dtype=int)), ("q_2", np.eye(2, dtype=int))], "q_2: another mask has the id 'q' already"),
        ([("_1", np.eye(2, dtype=int))], "_1: the id rule '([^_]+)' finds no id in this file name"),
    ],
)
def test_masks_that_cannot_be_written_leave_no_file_behind(tmp_path, masks, message):
    dialect = Dialect(order="row", row_id="{id}_{class}", image_id="([^_]+)")
    with pytest.raises(DataError) as caught:
        write_submission(masks, tmp_path / "s.csv", dialect=dialect, classes=3)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_kept_until_overwriting_is_asked_for(tmp_path):
    path = write_text(tmp_path / "s.csv", "old")
    masks = [("a", np.eye(2, dtype=int))]
    with pytest.raises(OutputError, match=r"exists already; .* --overwrite"):
        write_submission(masks, path, dialect=KAGGLE)
    assert path.read_text() == "old"
    write_submission(masks, path, dialect=KAGGLE, overwrite=True)
    assert path.read_text().endswith("a,1 1 4 1\n")


def test_a_real_mask_that_looks_like_the_empty_text_is_noticed(tmp_path):
    dialect = Dialect(order="row", empty="1 1")
    with pytest.raises(OutputError, match="image a does not read back as its mask; a real row may equal the empty"):
        write_submission([("a", np.array([[1, 0]]))], tmp_path / "s.csv", dialect=dialect)
    assert list(tmp_path.iterdir()) == []


def test_colour_pictures_are_no_masks(tmp_path):
    folder = save_masks(tmp_path / "m", {"a": np.zeros((4, 4, 3), np.uint8)})
    with pytest.raises(DataError, match=r"a\.png: holds colours, but an index mask"):
        list(read_masks(mask_files(folder)))


def test_the_nodata_value_of_a_raster_mask_is_void(tmp_path):
    values = np.array([[0, 1, 7], [7, 2, 2]], np.int16)
    profile = {"driver": "GTiff", "height": 2, "width": 3, "count": 1, "dtype": "int16", "nodata": 7}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(tmp_path / "a.tif", "w", **profile) as raster:
            raster.write(values, 1)
    ((name, labels),) = read_masks(mask_files(tmp_path))
    assert (name, labels.tolist()) == ("a", [[0, 1, 255], [255, 2, 2]])
    write_submission([(name, labels)], tmp_path / "s.csv", dialect=SMALL, classes=3)
    assert (tmp_path / "s.csv").read_text() == "id,rle\na_1,2 1\na_2,5 2\n"


def test_real_masks_come_back_pixel_by_pixel(shared_data, tmp_path):
    files = sorted((shared_data / "dubai" / "masks").glob("tile1_*.png"))[:3]
    assert files
    dialect = Dialect(order="column", row_id="{id}_{class}", labels=(0, 1, 2, 3, 4, 5))
    report = write_submission(read_masks(files), tmp_path / "s.csv", dialect=dialect)
    assert (report.rows, report.images) == (6 * len(files), len(files))
    rows = dict(line.split(",") for line in (tmp_path / "s.csv").read_text().splitlines()[1:])
    for path in files:
        mask = np.asarray(Image.open(path))
        for label in range(6):
            decoded = plain_decode(rows[f"{path.stem}_{label}"], *mask.T.shape)
            np.testing.assert_array_equal(np.array([list(line) for line in decoded], bool).T, mask == label)


def test_files_that_are_no_submission_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_submission(tmp_path / "none.csv", KAGGLE)
    with pytest.raises(DataError, match="the file is empty"):
        read_submission(write_text(tmp_path / "empty.csv", ""), KAGGLE)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is no readable CSV"):
        read_submission(tmp_path / "binary.csv", KAGGLE)
    with pytest.raises(DataError, match=r"h\.csv: line 1: header 'a,b', but 'ImageId,EncodedPixels' is expected"):
        read_submission(write_text(tmp_path / "h.csv", "a,b\nx,1 1\n"), KAGGLE)


def test_a_row_file_may_not_be_called_an_archive(tmp_path):
    for name in ("s.zip", "s.csv.gz", "S.TAR", "s.tgz", "s.7z"):
        with pytest.raises(ConfigError, match=r"rows go to a plain \.csv file; name it so, and pack it afterwards"):
            write_submission([("a", np.array([[1]]))], tmp_path / name, dialect=KAGGLE)
    assert list(tmp_path.iterdir()) == []


def test_lines_before_the_header_may_be_empty(tmp_path):
    path = write_text(tmp_path / "s.csv", "\nImageId,EncodedPixels\na,2 1\n")
    assert verify(path, KAGGLE, masks=[("a", np.array([[0, 1]]))]).problems == ()
    write_text(path, "\nImageId,Pixels\na,2 1\n")
    assert verify(path, KAGGLE).problems == (
        "line 2: header 'ImageId,Pixels', but 'ImageId,EncodedPixels' is expected",
    )


class TestByteOrderMark:
    masks = (("a", np.array([[0, 1]])),)

    def test_a_sample_that_excel_saved_is_read_as_any_other(self, tmp_path):
        sample = tmp_path / "sample.csv"
        sample.write_text("ImageId,EncodedPixels\na,\n", encoding="utf-8-sig")
        write_submission(self.masks, tmp_path / "s.csv", dialect=KAGGLE, sample=sample)
        assert (tmp_path / "s.csv").read_bytes() == b"ImageId,EncodedPixels\na,2 1\n"
        assert verify(tmp_path / "s.csv", KAGGLE, sample=sample).problems == ()

    def test_in_a_submission_it_is_a_problem_of_its_own(self, tmp_path):
        path = tmp_path / "s.csv"
        path.write_text("ImageId,EncodedPixels\na,2 1\n", encoding="utf-8-sig")
        report = verify(path, KAGGLE, masks=self.masks)
        assert report.problems == (
            "line 1: begins with a byte order mark, as Excel writes it, which some readers take for a part of the "
            "title; save the file as UTF-8 without one",
        )
        assert report.compared == 1
        with pytest.raises(DataError, match=r"s\.csv: line 1: begins with a byte order mark"):
            read_submission(path, KAGGLE)


class TestDialects:
    def test_a_yaml_file_makes_a_dialect(self, tmp_path):
        text = """
        order: column
        base: 0
        relative: true
        header: [Id, Mask]
        row_id: "{id}.jpg_{class}"
        image_id: "(.+)_pred"
        labels: [1, 4]
        empty: "-1"
        resize: [256, 512]
        """
        assert load_dialect(str(write_text(tmp_path / "d.yaml", text))) == Dialect(
            order="column",
            base=0,
            relative=True,
            header=("Id", "Mask"),
            row_id="{id}.jpg_{class}",
            image_id="(.+)_pred",
            labels=(1, 4),
            empty="-1",
            resize=(256, 512),
        )

    def test_the_built_in_ones_go_by_name(self):
        assert load_dialect("hrud") == HRUD
        assert load_dialect("kaggle") == KAGGLE

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ({"order": "row", "bass": 1}, "unknown key 'bass'; did you mean base?"),
            ({"order": "row", "zzz": 1}, "unknown key 'zzz'; known are order, base"),
            ({"base": 1}, "the key order is missing; give row or column"),
            (["row"], "a mapping with the keys order, base"),
            ({"order": "rows"}, "order 'rows' is unknown; give row or column"),
            ({"order": "row", "base": 2}, "base 2 must be 0 or 1"),
            ({"order": "row", "base": True}, "base True must be 0 or 1"),
            ({"order": "row", "relative": "yes"}, "relative 'yes' must be true or false"),
            ({"order": "row", "empty": -1}, "empty -1 must be text; write it in quotes"),
            ({"order": "row", "labels": []}, "labels () must be 1 to 255 different whole numbers"),
            ({"order": "row", "labels": [1, 1]}, "labels (1, 1) must be"),
            ({"order": "row", "labels": [256]}, "labels (256,) must be"),
            ({"order": "row", "labels": 3}, "labels 3 must be"),
            ({"order": "row", "resize": 1024}, "resize 1024 must be two positive whole numbers"),
            ({"order": "row", "resize": [0, 4]}, "resize (0, 4) must be two positive"),
            ({"order": "row", "header": ["a"]}, "header ('a',) must be two titles"),
            ({"order": "row", "header": ["a", "a"]}, "both columns are titled 'a'"),
            ({"order": "row", "row_id": "x"}, "row_id 'x' must hold {id} once"),
            ({"order": "row", "row_id": "{id}_{klass}"}, "row_id '{id}_{klass}' must hold {id} once"),
            ({"order": "row", "row_id": 3}, "row_id 3 must hold"),
            ({"order": "row", "image_id": "(.+"}, "image_id '(.+' is no regular expression"),
            ({"order": "row", "image_id": ".+"}, "must have exactly one group (...), it has 0"),
        ],
    )
    def test_settings_that_cannot_work_are_refused(self, data, message):
        with pytest.raises(ConfigError) as caught:
            dialect_from_dict(data)
        assert message in str(caught.value)

    def test_an_unknown_name_says_what_there_is(self, tmp_path):
        with pytest.raises(ConfigError, match=r"'hurd': neither built in \(hrud, kaggle, siim, .*\) nor a YAML file"):
            load_dialect("hurd")
        bad = write_text(tmp_path / "bad.yaml", "order: [")
        with pytest.raises(ConfigError, match=r"bad\.yaml: is no readable YAML"):
            load_dialect(str(bad))
        with pytest.raises(ConfigError, match=r"typo\.yaml: unknown key 'ordr'; did you mean order"):
            load_dialect(str(write_text(tmp_path / "typo.yaml", "ordr: row")))

    def test_rows_per_class_need_to_know_the_classes(self):
        with pytest.raises(ConfigError, match="how many classes have rows is not known; give --classes or --labels"):
            SMALL.written(None)
        with pytest.raises(ConfigError, match="1 classes; 2 to 255 are possible"):
            SMALL.written(1)
        assert SMALL.written(4) == (1, 2, 3)
