"""A detector over images of any size: tiles, batches across images, pixels without data, photos that are scaled."""

import logging

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from visionapps.boxes import Detections
from visionapps.detection.base import Detector, Limits
from visionapps.errors import ConfigError, DataError
from visionapps.inference.detecting import ObjectPredictor
from visionapps.inference.merging import Merging
from visionapps.inference.sources import ArraySource
from visionapps.masks import coco_to_runs, encode
from visionapps.models import faster_rcnn
from visionapps.models.detection import Features
from visionapps.objects import Objects
from visionapps.structures import GeoRef, Rescale
from visionapps.testing import TinyBackbone


class Finder(Detector):
    """Finds regions of equal colour: a red one of value 100 + 10 k is an object of class k, seen whole or in part."""

    def __init__(self, num_classes: int = 3, *, masks: bool = False) -> None:
        super().__init__(TinyBackbone(), num_classes)
        self.gives_masks = masks
        self.calls: list[tuple[int, ...]] = []

    def detect(
        self, image: Tensor, sizes: tuple[tuple[int, int], ...], proposals: tuple[Tensor, ...] | None = None
    ) -> list[Detections]:
        self.calls.append(tuple(image.shape))
        if len(image) > 3 and self.num_classes == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [self._found(each[0, :h, :w].float().numpy()) for each, (h, w) in zip(image, sizes, strict=True)]

    def _found(self, red: np.ndarray) -> Detections:
        rows, masks = [], []
        for label in range(self.num_classes):
            regions, _ = ndimage.label(np.abs(red - 100 - 10 * label) < 3)
            for number, (y, x) in enumerate(ndimage.find_objects(regions), 1):
                if min(y.stop - y.start, x.stop - x.start) >= 3:
                    rows.append((x.start, y.start, x.stop, y.stop, label, 0.5 + 0.4 / (1 + x.start % 7)))
                    masks.append(torch.from_numpy(regions == number))
        table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
        shown = torch.stack(masks) if masks else torch.zeros((0, *red.shape), dtype=torch.bool)
        return Detections(table[:, :4], table[:, 4].long(), table[:, 5], shown if self.gives_masks else None)


def picture(shape: tuple[int, int], seed: int = 0, count: int = 30, largest: int = 90) -> tuple[np.ndarray, Objects]:
    """(3, H, W) uint8 with coloured rectangles that do not touch, and what they are."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 60, (3, *shape), dtype=np.uint8)
    taken = np.zeros(shape, bool)
    boxes, labels = [], []
    for i in range(count):
        h, w = rng.integers(8, largest, 2)
        y, x = rng.integers(0, max(1, shape[0] - h)), rng.integers(0, max(1, shape[1] - w))
        if not taken[max(0, y - 5) : y + h + 5, max(0, x - 5) : x + w + 5].any():
            taken[y : y + h, x : x + w] = True
            image[0, y : y + h, x : x + w] = 100 + 10 * (i % 3)
            boxes.append((x, y, min(x + w, shape[1]), min(y + h, shape[0])))
            labels.append(i % 3)
    return image, Objects(np.array(boxes), np.array(labels))


def sorted_rows(found: Objects) -> np.ndarray:
    rows = np.concatenate([found.labels[:, None] * 1000, found.boxes], axis=1)
    middle = (found.boxes[:, :2] + found.boxes[:, 2:]) @ np.array([1.0, 7.3])
    return rows[np.lexsort((middle, found.labels))]


def assert_same(found: Objects, expected: Objects, tolerance: float = 3) -> None:
    assert len(found) == len(expected)
    assert np.abs(sorted_rows(found) - sorted_rows(expected)).max(initial=0) <= tolerance


@pytest.mark.parametrize("how", ["nms", "wbf"])
@pytest.mark.parametrize(("tile", "overlap"), [(None, None), (96, None), (128, 0), (100, 33), (160, 64), (250, 20)])
def test_the_objects_are_the_same_whatever_the_tiles(tile: int | None, overlap: int | None, how: str) -> None:
    image, truth = picture((430, 517))
    predictor = ObjectPredictor(Finder(), tile=tile, overlap=overlap, device="cpu", merging=Merging(how))  # type: ignore[arg-type]
    found = predictor.detect(ArraySource(image))
    assert_same(found, truth)
    assert found.scores is not None
    assert (np.diff(found.scores) <= 0).all()


def test_masks_of_cut_objects_are_those_of_the_whole_image() -> None:
    image, truth = picture((300, 340), seed=2)
    found = ObjectPredictor(Finder(masks=True), tile=96, overlap=32, device="cpu").detect(ArraySource(image))
    assert_same(found, truth)
    assert found.masks is not None
    exact = 0
    for box, mask in zip(found.boxes.astype(int), found.masks, strict=True):
        x0, y0, x1, y1 = box
        whole = np.zeros((300, 340), bool)
        whole[y0:y1, x0:x1] = True
        exact += np.array_equal(coco_to_runs(mask), encode(whole, order="column"))
    assert exact == len(found)
    assert np.array_equal(found.areas, (found.boxes[:, 2:] - found.boxes[:, :2]).prod(1))


def test_batches_go_across_images_and_the_answers_come_in_order() -> None:
    pictures = [
        picture(shape, seed) for seed, shape in enumerate([(300, 300), (40, 50), (300, 300), (1, 1), (64, 300)])
    ]
    answers = {}
    for batch in (1, 4, 50):
        model = Finder()
        predictor = ObjectPredictor(model, tile=64, overlap=16, device="cpu", batch=batch)
        answers[batch] = list(predictor.detect_all(ArraySource(image) for image, _ in pictures))
        assert max(shape[0] for shape in model.calls) <= batch
        if batch == 50:  # 49 tiles of the first picture, 49 of the third, but those between have other sizes
            assert model.calls[0][0] > 16
        for found, (_, truth) in zip(answers[batch], pictures, strict=True):
            if len(truth) > 1:
                assert_same(found, truth)
    for other in (4, 50):
        for one, two in zip(answers[1], answers[other], strict=True):
            assert one.boxes.tobytes() == two.boxes.tobytes()


def test_tiles_of_several_photos_of_one_size_share_a_batch() -> None:
    model = Finder()
    predictor = ObjectPredictor(model, tile=128, device="cpu", batch=6)
    images = [picture((100, 120), seed)[0] for seed in range(6)]
    assert len(list(predictor.detect_all(ArraySource(image) for image in images))) == 6
    assert [shape[0] for shape in model.calls] == [6]
    assert predictor.tally.tiles == 6


def test_what_has_no_data_costs_nothing_and_has_no_objects() -> None:
    image, truth = picture((256, 400), seed=5)
    valid = np.ones((256, 400), bool)
    valid[:, 130:] = False
    model = Finder()
    predictor = ObjectPredictor(model, tile=64, overlap=0, device="cpu")
    found = predictor.detect(ArraySource(image, valid=valid))
    expected = truth.take(truth.boxes[:, 2] <= 130)
    inside = found.take(found.boxes[:, 2] <= 127)
    assert len(inside) >= len(expected) > 0
    assert found.boxes[:, 2].max() <= 130  # what is not valid is filled with a neutral colour
    assert predictor.tally.skipped == 16
    nothing = predictor.detect(ArraySource(image, valid=np.zeros((256, 400), bool)))
    assert len(nothing) == 0
    assert nothing.scores is not None


def test_a_box_that_lies_mostly_where_there_is_no_data_is_dropped() -> None:
    class Everywhere(Finder):
        def _found(self, red: np.ndarray) -> Detections:
            boxes = torch.tensor([[0.0, 0, 40, 10], [0.0, 20, 60, 30], [50, 40, 60, 50]])
            return Detections(boxes, torch.zeros(3, dtype=torch.int64), torch.tensor([0.9, 0.8, 0.7]))

    valid = np.ones((60, 60), bool)
    valid[:, 29:] = False  # 29 of 40 columns of the first box are seen, 29 of 60 of the second
    found = ObjectPredictor(Everywhere(), device="cpu").detect(ArraySource(np.ones((3, 60, 60), np.uint8), valid=valid))
    assert found.boxes.tolist() == [[0, 0, 40, 10]]


def test_photos_are_scaled_and_rasters_are_not() -> None:
    image, truth = picture((120, 160), seed=3, largest=50)
    big = image.repeat(2, axis=1).repeat(2, axis=2)
    model = Finder(masks=True)
    predictor = ObjectPredictor(model, tile=64, rescale=Rescale(120, 200), device="cpu")
    found = predictor.detect(ArraySource(big))
    assert model.calls == [(1, 3, 128, 160)]
    doubled = Objects(truth.boxes * 2, truth.labels)
    assert_same(found, doubled, tolerance=4)
    assert found.masks is not None
    assert found.masks[0]["size"] == [240, 320]
    assert np.allclose(found.areas, (found.boxes[:, 2:] - found.boxes[:, :2]).prod(1), rtol=0.1)
    assert_same(predictor.detect(ArraySource(big, georef=GeoRef(None, (1.0, 0, 0, 0, -1, 0)))), doubled)
    assert model.calls[1] == (30, 3, 64, 64)


def test_an_image_that_cannot_be_read_does_not_stop_the_others() -> None:
    class Damaged(ArraySource):
        def read(self, window: object) -> object:  # type: ignore[override]
            raise DataError("damaged.tif: cannot be read here")

    image, truth = picture((90, 200), seed=1)
    sources = [ArraySource(image), Damaged(image), ArraySource(image[:2], name="two.tif"), ArraySource(image)]
    predictor = ObjectPredictor(Finder(), tile=64, device="cpu", batch=8)
    outcomes = [outcome for _, outcome in predictor.run(sources)]
    assert_same(outcomes[0], truth)  # type: ignore[arg-type]
    assert_same(outcomes[3], truth)  # type: ignore[arg-type]
    assert [str(outcome) for outcome in outcomes[1:3]] == [
        "damaged.tif: cannot be read here",
        "two.tif: 2 bands, but the model expects 3 (red, green, blue); choose them with --bands",
    ]
    with pytest.raises(DataError, match=r"damaged\.tif"):
        list(predictor.detect_all(sources))


def test_memory_that_is_too_short_for_a_batch_halves_it(caplog: pytest.LogCaptureFixture) -> None:
    image, _ = picture((260, 260))
    image[0][image[0] >= 110] = 0
    model = Finder(1)
    with caplog.at_level(logging.WARNING):
        found = ObjectPredictor(model, tile=64, device="cpu", batch=9).detect(ArraySource(image))
    assert len(found) == len(ObjectPredictor(Finder(1), tile=64, device="cpu", batch=1).detect(ArraySource(image)))
    assert "not enough memory for batches of 9 tiles of 64 x 64 px: 4 from now on" in caplog.text
    assert model.calls[-1][0] <= 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (3000, 5)])
def test_images_of_one_pixel_and_thin_strips_go_through(shape: tuple[int, int]) -> None:
    image, _ = picture(shape, count=0)
    assert len(ObjectPredictor(Finder(), tile=64, device="cpu").detect(ArraySource(image))) == 0


def test_memory_does_not_grow_with_the_height() -> None:
    class Tall(ArraySource):
        """Makes its pixels when they are asked for, and notes how many are asked for at once."""

        most = 0

        def read(self, window):  # type: ignore[no-untyped-def]
            Tall.most = max(Tall.most, window.height)
            image = np.zeros((3, window.height, window.width), np.uint8)
            return type(super().read(window.__class__(0, 0, 1, 1)))(image, np.ones(image.shape[1:], bool))

    source = Tall(np.zeros((3, 1, 1), np.uint8))
    source.shape, source.block = (20_000, 80), (64, 80)
    ObjectPredictor(Finder(), tile=64, device="cpu").detect(source)
    assert Tall.most <= 192


def test_bad_options_are_refused_in_words() -> None:
    for options, text in [
        ({"tile": 0}, "tile 0: must be at least 1 pixel"),
        ({"overlap": 8}, "whole images have no overlap"),
        ({"tile": 64, "overlap": 40}, r"overlap 40 px: must be in \[0, 32\]"),
        ({"batch": 0}, "batch 0: must be at least 1 tile"),
        ({"device": "tpu9"}, "not usable here"),
        ({"precision": "int8"}, "must be auto, fp32, bf16 or fp16"),
    ]:
        with pytest.raises(ConfigError, match=text):
            ObjectPredictor(Finder(), **({"device": "cpu"} | options))  # type: ignore[arg-type]


def test_a_detector_without_proposals_of_its_own_gets_those_of_a_function() -> None:
    class Picky(Finder):
        needs_proposals = True
        given: tuple[Tensor, ...] | None = None

        def detect(self, image, sizes, proposals=None):  # type: ignore[no-untyped-def]
            self.given = proposals
            return super().detect(image, sizes)

    model = Picky()
    predictor = ObjectPredictor(model, device="cpu")
    source = ArraySource(picture((50, 60))[0])
    with pytest.raises(ConfigError, match=r"makes none itself: set ObjectPredictor\.propose"):
        predictor.detect(source)
    predictor.propose = lambda tile: np.array([[0, 0, tile.window.width, tile.window.height]])
    predictor.detect(source)
    assert model.given is not None
    assert model.given[0].tolist() == [[0, 0, 60, 50]]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_real_detector_gives_the_same_bytes_for_any_batch_and_number_of_threads(precision: str) -> None:
    torch.manual_seed(0)
    model = faster_rcnn("resnet10t", 3, features=Features(channels=16))
    model.limits = Limits(score=0.0, nms=0.5, most=30)
    image = np.random.default_rng(0).integers(0, 256, (3, 13, 20), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    before, results = torch.get_num_threads(), []
    try:
        for batch, threads in [(1, 1), (4, 2), (20, 1)]:
            torch.set_num_threads(threads)
            predictor = ObjectPredictor(model, tile=64, device="cpu", batch=batch, precision=precision)  # type: ignore[arg-type]
            predictor.threads = threads
            found = predictor.detect(ArraySource(image))
            assert found.scores is not None
            results.append((found.boxes.tobytes(), found.scores.tobytes(), found.labels.tobytes()))
    finally:
        torch.set_num_threads(before)
    assert len(results[0][2]) > 100 * 8  # bytes a label
    assert len(set(results)) == 1
