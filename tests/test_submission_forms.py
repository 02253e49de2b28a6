"""Forms of rows beyond a pair of start and length: class columns, sizes, instances, COCO's counts; and test images."""

import base64
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from visionapps.errors import ConfigError, DataError
from visionapps.inference.dialects import DSB2018, KAGGLE, SEVERSTAL, SIIM, Dialect, dialect_from_dict
from visionapps.inference.submission import (
    image_sizes,
    match_images,
    match_sample,
    read_submission,
    resize_nearest,
    verify,
    write_submission,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside pycocotools

UW = Dialect(
    order="row",
    header=("id", "class", "segmentation"),
    row_id="{id},{class}",
    labels=(1, 2, 3),
    names=("large_bowel", "small_bowel", "stomach"),
    overlap=True,
)
COCO = Dialect(order="column", encoding="coco", row_id="{id}_{class}", header=("id", "rle"))
SIZED = Dialect(
    order="column", encoding="coco_zlib", header=("ID", "ImageHeight", "ImageWidth", "PredictionString"),
    row_id="{id},{height},{width},0 1.0 {mask}",
)  # fmt: skip
OBJECTS = Dialect(
    order="column", header=("ImageId", "EncodedPixels", "ClassId"), row_id="{id},{mask},{class}", instances=8,
    absent="skip",
)  # fmt: skip


def write_text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_the_class_has_a_column_and_a_name_as_in_uw_madison(tmp_path):
    masks = [("case1", np.array([[0, 1], [3, 3]])), ("case2", np.zeros((2, 2), int))]
    write_submission(masks, tmp_path / "s.csv", dialect=UW)
    assert lines(tmp_path / "s.csv") == [
        "id,class,segmentation",
        "case1,large_bowel,2 1",
        "case1,small_bowel,",
        "case1,stomach,3 2",
        "case2,large_bowel,",
        "case2,small_bowel,",
        "case2,stomach,",
    ]
    assert [row.label for row in read_submission(tmp_path / "s.csv", UW)] == [1, 2, 3] * 2
    assert verify(tmp_path / "s.csv", UW, masks=masks).problems == ()


def test_a_class_that_has_no_such_name_is_refused_and_the_names_are_told(tmp_path):
    path = write_text(tmp_path / "s.csv", "id,class,segmentation\na,large_bowel,\na,liver,1 1\n")
    assert verify(path, UW).problems == (
        "line 3: column class: 'liver' does not have the form {class}; its classes are large_bowel, small_bowel, "
        "stomach",
        "2 rows are missing: a,small_bowel, a,stomach",
    )


def test_classes_may_share_pixels_where_the_competition_says_so(tmp_path):
    path = write_text(tmp_path / "s.csv", "id,class,segmentation\na,large_bowel,1 2\na,small_bowel,2 1\na,stomach,\n")
    assert verify(path, UW).problems == ()
    assert verify(path, Dialect(**{**vars_of(UW), "overlap": False})).problems == (
        "image a: labels 1 and 2 both claim pixel 2; classes overlap",
    )
    # Against a mask every class is compared by itself.
    (problem,) = verify(path, UW, masks=[("a", np.array([[1, 2]]))]).problems
    assert problem == "image a: 1 of 2 pixels differ from the mask, the first at row 0, column 1"


def vars_of(dialect: Dialect) -> dict:
    return {name: getattr(dialect, name) for name in Dialect.__dataclass_fields__}


class TestPaddedClasses:
    dialect = Dialect(order="column", row_id="{id}_{class}")
    masks = (("a", np.array([[1, 2]])),)

    def test_a_sample_that_pads_them_is_refused_and_names_are_the_way_out(self, tmp_path):
        sample = write_text(tmp_path / "sample.csv", "ImageId,EncodedPixels\na_01,\na_02,\n")
        message = (
            r"id 'a_01' holds the class 01, which would be written as 1; if the competition wants that, give labels "
            r"and names: --labels 1,2 --names 01,02"
        )
        with pytest.raises(ConfigError, match=message):
            write_submission(self.masks, tmp_path / "s.csv", dialect=self.dialect, classes=3, sample=sample)
        named = Dialect(**{**vars_of(self.dialect), "labels": (1, 2), "names": ("01", "02")})
        write_submission(self.masks, tmp_path / "s.csv", dialect=named, sample=sample)
        assert lines(tmp_path / "s.csv")[1:] == ["a_01,1 1", "a_02,2 1"]
        assert verify(tmp_path / "s.csv", named, sample=sample, masks=self.masks).problems == ()

    def test_a_submission_that_pads_them_is_not_taken_for_one_that_does_not(self, tmp_path):
        path = write_text(tmp_path / "s.csv", "ImageId,EncodedPixels\na_01,1 1\na_2,2 1\n")
        problems = verify(path, self.dialect, classes=3).problems
        assert problems[0].startswith("line 2: id 'a_01' holds the class 01, which would be written as 1; if the")
        assert problems[1:] == ("1 rows are missing: a_1",)
        with pytest.raises(DataError, match="holds the class 01"):
            read_submission(path, self.dialect)

    def test_in_a_column_and_in_keys_it_is_the_same_and_0_is_a_class(self):
        column = Dialect(order="row", header=("id", "class", "rle"), row_id="{id},{class}")
        with pytest.raises(DataError, match="id '00' holds the class 00, which would be written as 0"):
            column.split(["a", "00", ""])
        with pytest.raises(DataError, match="id 'a,007' holds the class 007"):
            column.split_key("a,007")
        assert column.split_key("a,0") == ("a", 0)
        assert column.split(["01", "10", ""])[:2] == ("01", 10)


def test_severstal_has_four_rows_a_picture_with_the_class_behind_its_file_name(tmp_path):
    write_submission([("0002cc93b", np.array([[0, 3], [0, 3]]))], tmp_path / "s.csv", dialect=SEVERSTAL)
    assert lines(tmp_path / "s.csv") == [
        "ImageId_ClassId,EncodedPixels",
        "0002cc93b.jpg_1,",
        "0002cc93b.jpg_2,",
        "0002cc93b.jpg_3,3 2",
        "0002cc93b.jpg_4,",
    ]


def siim_decode(text: str, height: int, width: int) -> np.ndarray:
    """As the competition describes it: a position that every number moves on, along columns."""
    flat, position = np.zeros(height * width, bool), 0
    numbers = [int(word) for word in text.split()]
    for start, length in zip(numbers[::2], numbers[1::2], strict=True) if numbers != [-1] else ():
        position += start
        flat[position : position + length] = True
        position += length
    return flat.reshape(width, height).T


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), density=st.sampled_from([0, 0.1, 0.6, 1]))
def test_siim_files_are_read_by_a_loop_that_moves_a_position(tmp_path_factory, seed, density):
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 12, 2)) < density
    path = tmp_path_factory.mktemp("siim") / "s.csv"
    write_submission([("a", mask)], path, dialect=SIIM)
    np.testing.assert_array_equal(siim_decode(lines(path)[1].split(",")[1], *mask.shape), mask)
    assert verify(path, SIIM, masks=[("a", mask)]).problems == ()


class TestCoco:
    def test_rows_are_the_very_strings_of_pycocotools(self, tmp_path):
        mask = np.random.default_rng(0).integers(0, 3, (40, 50))
        write_submission([("a", mask)], tmp_path / "s.csv", dialect=COCO, classes=4)
        rows = dict(line.split(",") for line in lines(tmp_path / "s.csv")[1:])
        for label in (1, 2):
            packed = coco.encode(np.asfortranarray((mask == label).astype(np.uint8)))
            assert rows[f"a_{label}"] == packed["counts"].decode()
        assert rows["a_3"] == ""

    def test_deflated_rows_with_sizes_are_read_as_open_images_does(self, tmp_path):
        mask = (np.random.default_rng(1).random((30, 20)) < 0.3).astype(np.uint8)
        masks = [("a", mask), ("b", np.zeros((4, 5), np.uint8))]
        write_submission(masks, tmp_path / "s.csv", dialect=SIZED)
        header, a, b = lines(tmp_path / "s.csv")
        assert header == "ID,ImageHeight,ImageWidth,PredictionString"
        assert b == "b,4,5,"
        name, height, width, text = a.split(",")
        assert (name, height, width, text[:6]) == ("a", "30", "20", "0 1.0 ")
        counts = zlib.decompress(base64.b64decode(text[6:]))
        np.testing.assert_array_equal(coco.decode({"size": [30, 20], "counts": counts}), mask)
        assert verify(tmp_path / "s.csv", SIZED, masks=masks).problems == ()

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("0 1.0 ???", "line 2 (a): the text cannot be read as coco_zlib"),
            ("0 1.0 " + base64.b64encode(b"no").decode(), "line 2 (a): the text cannot be read as coco_zlib"),
            ("0 1.0 " + base64.b64encode(zlib.compress(b"0123456789")[:-6]).decode(), "the deflated counts are cut"),
            ("0 1.0 " + base64.b64encode(zlib.compress(b"43")).decode(), "add up to 7 pixels, but a mask of 2 x 3 has"),
            ("1.0 x", "line 2: column PredictionString: '1.0 x' does not have the form 0 1.0 {mask}"),
        ],
    )
    def test_broken_rows_are_named(self, tmp_path, text, message):
        path = write_text(tmp_path / "s.csv", f"ID,ImageHeight,ImageWidth,PredictionString\na,2,3,{text}\n")
        (problem,) = verify(path, SIZED).problems
        assert message in problem

    def test_counts_of_another_size_are_found_once_the_size_is_known(self, tmp_path):
        path = write_text(tmp_path / "s.csv", "id,rle\na_1,43\n")  # 4 + 3 pixels
        assert verify(path, COCO).problems == ()
        (problem,) = verify(path, COCO, sizes={"a": (2, 4)}).problems
        assert problem == ("line 2 (a_1): the counts add up to 7 pixels, but a mask of 2 x 4 has 8; check the size")


class TestInstances:
    mask = np.array([[1, 0, 2, 2], [0, 1, 0, 0], [0, 0, 0, 2]], np.uint8)

    def test_every_nucleus_has_a_row_and_an_empty_picture_has_one(self, tmp_path):
        masks = [("a", self.mask), ("b", np.zeros((2, 2), np.uint8))]
        report = write_submission(masks, tmp_path / "s.csv", dialect=DSB2018)
        # By corners all but the last pixel hang together.
        assert lines(tmp_path / "s.csv")[1:] == ["a,1 1 5 1 7 1 10 1", "a,12 1", "b,"]
        assert (report.rows, report.images, report.filled) == (3, 2, 2)
        assert verify(tmp_path / "s.csv", DSB2018, masks=masks).problems == ()

    def test_classes_in_a_column_of_their_own_and_none_for_those_that_are_absent(self, tmp_path):
        masks = [("a", self.mask), ("b", np.zeros((2, 2), np.uint8))]
        write_submission(masks, tmp_path / "s.csv", dialect=OBJECTS, classes=4)
        assert lines(tmp_path / "s.csv") == ["ImageId,EncodedPixels,ClassId", "a,1 1 5 1,1", "a,7 1 10 1,2", "a,12 1,2"]
        assert verify(tmp_path / "s.csv", OBJECTS, classes=4, masks=masks).problems == ()

    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 10**6), neighbours=st.sampled_from([4, 8]), order=st.sampled_from(["row", "column"]))
    def test_rows_are_the_components_of_opencv(self, tmp_path_factory, seed, neighbours, order):
        rng = np.random.default_rng(seed)
        mask = (rng.random(rng.integers(2, 20, 2)) < 0.5).astype(np.uint8)
        path = tmp_path_factory.mktemp("objects") / "s.csv"
        dialect = Dialect(order=order, instances=neighbours)
        write_submission([("a", mask)], path, dialect=dialect)
        count, labels = cv2.connectedComponents(mask, connectivity=neighbours)
        flat = labels.ravel() if order == "row" else labels.T.ravel()
        found = []
        for row in read_submission(path, dialect) if mask.any() else ():
            numbers = [int(word) for word in row.text.split()]
            pixels = {p for s, n in zip(numbers[::2], numbers[1::2], strict=True) for p in range(s - 1, s - 1 + n)}
            found.append(pixels)
        assert sorted(map(sorted, found)) == sorted(np.flatnonzero(flat == label).tolist() for label in range(1, count))

    def test_rows_of_one_picture_that_share_a_pixel_are_named_by_their_lines(self, tmp_path):
        path = write_text(tmp_path / "s.csv", "ImageId,EncodedPixels\na,1 3\na,9 1\na,3 2\n")
        assert verify(path, DSB2018).problems == (
            "image a: lines 2 and 4 both claim pixel 3; rows of an image must not overlap",
        )

    def test_the_sample_names_every_picture_once_and_gives_their_order(self, tmp_path):
        sample = write_text(tmp_path / "sample.csv", "ImageId,EncodedPixels\nb,1 1\na,1 1\n")
        masks = [("a", self.mask), ("b", np.zeros((2, 2), np.uint8)), ("c", self.mask)]
        report = write_submission(masks, tmp_path / "s.csv", dialect=DSB2018, sample=sample)
        assert lines(tmp_path / "s.csv")[1:] == ["b,", "a,1 1 5 1 7 1 10 1", "a,12 1"]
        assert report.left_out == 1
        assert verify(tmp_path / "s.csv", DSB2018, sample=sample).problems == ()
        # Where absent classes are skipped, images alone have to match.
        sample = write_text(tmp_path / "sample2.csv", "ImageId,EncodedPixels,ClassId\nb,1 1,1\na,1 1,1\n")
        write_submission(masks, tmp_path / "t.csv", dialect=OBJECTS, classes=3, sample=sample)
        assert lines(tmp_path / "t.csv")[1:] == ["a,1 1 5 1,1", "a,7 1 10 1,2", "a,12 1,2"]
        assert verify(tmp_path / "t.csv", OBJECTS, classes=3, sample=sample).problems == ()
        write_text(tmp_path / "t.csv", "ImageId,EncodedPixels,ClassId\nz,1 1,1\n")
        assert verify(tmp_path / "t.csv", OBJECTS, classes=3, sample=sample).problems == (
            "1 rows are not in the sample: z",
        )


class TestVerifyingWhatWasWritten:
    def test_an_image_without_objects_need_not_have_rows_where_the_absent_is_left_out(self, tmp_path):
        masks = [("a", np.array([[1, 0]])), ("c", np.zeros((1, 2), int))]
        sizes = {"a": (1, 2), "c": (1, 2)}
        write_submission(masks, tmp_path / "s.csv", dialect=OBJECTS, classes=2, sizes=sizes)
        assert lines(tmp_path / "s.csv")[1:] == ["a,1 1,1"]
        assert verify(tmp_path / "s.csv", OBJECTS, classes=2, sizes=sizes, masks=masks).problems == ()
        assert verify(tmp_path / "s.csv", OBJECTS, sizes={"c": (1, 2)}).problems == ("1 ids belong to no image: a",)

    @pytest.mark.parametrize("dialect", [KAGGLE, OBJECTS], ids=["row", "skip"])
    def test_masks_that_the_sample_does_not_name_are_passed_over_and_counted(self, tmp_path, dialect):
        masks = [("a", np.array([[1, 0]])), ("b", np.array([[0, 1]]))]
        row = ["a", "1 1", "1"][: len(dialect.header)]
        sample = write_text(tmp_path / "sample.csv", "\n".join([",".join(dialect.header), ",".join(row), ""]))
        write_submission(masks, tmp_path / "s.csv", dialect=dialect, classes=2, sample=sample)
        found = verify(tmp_path / "s.csv", dialect, classes=2, sample=sample, masks=masks)
        assert (found.problems, found.compared, found.left_out) == ((), 1, 1)
        # Without the sample nobody says that this mask is not wanted; and one that it names is compared.
        assert len(verify(tmp_path / "s.csv", dialect, classes=2, masks=masks).problems) == 1
        other = [("a", np.array([[0, 1]]))]
        assert len(verify(tmp_path / "s.csv", dialect, classes=2, sample=sample, masks=other).problems) == 1


class TestSizes:
    images = ("6411_a.png", "8389_b.png")

    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "images").mkdir()
        for name, size in zip(self.images, [(4, 3), (2, 2)], strict=True):
            Image.new("RGB", size).save(tmp_path / "images" / name)
        return tmp_path / "images"

    def test_of_test_images_are_read_by_id(self, tmp_path):
        folder = self.folder(tmp_path)
        assert image_sizes(folder, "([^_]+)") == {"6411": (3, 4), "8389": (2, 2)}
        with pytest.raises(DataError, match=r"8389_b\.png: another image has the id '_' already"):
            image_sizes(folder, "....(_)")

    def test_a_mask_of_another_size_than_its_image_is_refused(self, tmp_path):
        sizes = {"a": (3, 4)}
        message = r"a: mask is 2 x 2 px \(H x W\), but 3 x 4 are wanted; predict at the size of the image, or set"
        with pytest.raises(DataError, match=message):
            write_submission([("a", np.eye(2, dtype=int))], tmp_path / "s.csv", dialect=KAGGLE, sizes=sizes)
        resized = Dialect(order="column", resize=(2, 2))
        write_submission([("a", np.eye(2, dtype=int))], tmp_path / "s.csv", dialect=resized, sizes=sizes)
        assert lines(tmp_path / "s.csv")[1:] == ["a,1 1 4 1"]

    def test_images_without_a_mask_and_masks_without_an_image_are_listed(self, tmp_path):
        masks = [("a", np.eye(2, dtype=int)), ("b", np.eye(2, dtype=int))]
        with pytest.raises(DataError, match=r"1 images have no mask: c; check both folders, or --image-id"):
            write_submission(masks, tmp_path / "s.csv", dialect=KAGGLE, sizes=dict.fromkeys("abc", (2, 2)))
        with pytest.raises(DataError, match=r"masks: 1 masks have no image: b"):
            match_images(["a", "b"], {"a": (2, 2)}, where=Path("masks"))
        assert list(tmp_path.iterdir()) == []

    def test_many_images_are_not_each_compared_with_all(self):
        compared = 0

        class Counting(str):
            __hash__ = str.__hash__

            def __eq__(self, other: object) -> bool:
                nonlocal compared
                compared += 1
                return str.__eq__(self, other)

        ids = [Counting(f"image {i}") for i in range(300)]
        match_images(ids, {Counting(image): (1, 1) for image in ids}, where=Path("m"))
        assert compared <= 4 * len(ids)

    def test_verification_holds_ids_and_runs_against_the_images(self, tmp_path):
        path = write_text(tmp_path / "s.csv", "ImageId,EncodedPixels\na,4 2\nz,\n")
        assert verify(path, KAGGLE, sizes={"a": (2, 2), "b": (2, 2)}).problems == (
            "1 ids belong to no image: z",
            "1 images have no rows: b",
            "line 2 (a): run 1 (4 2): ends at pixel 5, but the last pixel is 4; check size and base",
        )

    def test_rows_that_tell_another_size_than_sample_or_image_are_named(self, tmp_path):
        header = "ID,ImageHeight,ImageWidth,PredictionString\n"
        sample = write_text(tmp_path / "sample.csv", header + "a,2,3,0\nb,5,5,0\n")
        path = write_text(tmp_path / "s.csv", header + "a,3,2,\nb,5,5,\n")
        problem = "line 2 (a): height 3, width 2, but the mask of a is 2 x 3"
        assert verify(path, SIZED, sample=sample).problems == (problem,)
        assert verify(path, SIZED, sizes={"a": (2, 3), "b": (5, 5)}).problems == (problem,)
        masks = [("a", np.ones((3, 2), int)), ("b", np.ones((5, 5), int))]
        with pytest.raises(DataError, match="a: mask is 3 x 2 px"):
            write_submission(masks, tmp_path / "t.csv", dialect=SIZED, sample=sample)
        write_text(sample, header + "a,2,3,0\na,2,4,0\n")
        instances = Dialect(**{**vars_of(SIZED), "instances": 4})
        with pytest.raises(DataError, match="image a has two sizes"):
            match_sample(["a"], instances, sample=sample)


def test_a_sample_of_other_ids_names_both_sides(tmp_path):
    sample = write_text(tmp_path / "sample.csv", "ImageId,EncodedPixels\na.jpg,\nb.jpg,\n")
    message = r"2 of 2 ids have no mask: a\.jpg, b\.jpg; the masks have the ids a, b; predict those images too, or"
    with pytest.raises(DataError, match=message):
        match_sample(["a", "b"], KAGGLE, sample=sample)
    with pytest.raises(DataError, match=message):
        write_submission([(n, np.eye(2, dtype=int)) for n in "ab"], tmp_path / "s.csv", dialect=KAGGLE, sample=sample)


@settings(max_examples=150, deadline=None)
@given(full=st.integers(1, 400), count=st.sampled_from([1, 3, 7, 10, 49, 64, 100, 256]))
def test_opencv_resizing_takes_the_pixels_that_opencv_takes(full, count):
    mask = np.arange(full * 2, dtype=np.uint16).reshape(2, full)
    expected = cv2.resize(mask, (count, 5), interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(resize_nearest(mask, (5, count), "opencv"), expected)


@pytest.mark.parametrize("full", [(3000, 4000), (3072, 4592)])
def test_both_rules_differ_on_hrud_photos_and_each_is_that_of_its_library(full):
    mask = np.add.outer(np.arange(full[0]) % 251, np.arange(full[1]) % 239).astype(np.uint8)
    by_opencv = resize_nearest(mask, (1024, 1024), "opencv")
    np.testing.assert_array_equal(by_opencv, cv2.resize(mask, (1024, 1024), interpolation=cv2.INTER_NEAREST))
    assert (by_opencv != resize_nearest(mask, (1024, 1024))).any()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"encoding": "lzw"}, "encoding 'lzw' is unknown; known are pairs, coco, coco_zlib"),
        ({"order": "row", "encoding": "coco"}, "encoding 'coco' reads by column"),
        ({"relative": True, "encoding": "coco"}, "knows no relative starts"),
        ({"absent": "no"}, "absent 'no' is unknown; known are row, skip"),
        ({"nearest": "gdal"}, "nearest 'gdal' is unknown; known are pillow, opencv"),
        ({"instances": 6}, "instances 6 must be 0"),
        ({"instances": True}, "instances True must be 0"),
        ({"overlap": 1}, "overlap 1 must be true or false"),
        ({"names": ["a"]}, "1 names (a) for 0 labels; give labels"),
        ({"names": ["a", "a"], "labels": [1, 2]}, "2 names (a, a) for 2 labels"),
        ({"names": [1], "labels": [1]}, "names (1,) must be texts"),
        ({"row_id": "{id},{class}"}, "the rows {id},{class},{mask} have 3 cells, but the header has 2 titles"),
        ({"row_id": "{id}_{height}"}, "has one of {height} and {width}"),
        ({"row_id": "{id}{mask}"}, "has {mask} or a size in one cell with others"),
        ({"row_id": "{id}_{height}x{width}"}, "has {mask} or a size in one cell with others"),
        ({"row_id": "{id}_{id}"}, "must hold {id} once"),
    ],
)  # fmt: skip
def test_rules_that_cannot_work_are_refused(data, message):
    with pytest.raises(ConfigError) as caught:
        dialect_from_dict({"order": "column", **data})
    assert message in str(caught.value)


def test_an_id_may_hold_what_looks_like_a_rule(tmp_path):
    dialect = Dialect(order="row", row_id="{id}_{class}", labels=(1, 2), names=("a", "a_b"))
    masks = [("x{class}_a", np.array([[1, 2]]))]
    write_submission(masks, tmp_path / "s.csv", dialect=dialect)
    assert lines(tmp_path / "s.csv")[1:] == ["x{class}_a_a,1 1", "x{class}_a_a_b,2 1"]
    assert verify(tmp_path / "s.csv", dialect, masks=masks).problems == ()
