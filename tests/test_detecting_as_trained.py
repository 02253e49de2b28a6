"""Prediction sees a photo exactly as validation during training saw it: same pixels, same proposals, same boxes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from visionapps.data.fake_objects import write_fake_objects
from visionapps.data.object_crops import EvalObjects, View, collate_objects
from visionapps.data.object_dataset import ObjectDataset
from visionapps.data.object_doctor import examine_objects
from visionapps.inference.detecting import ObjectPredictor, known, search
from visionapps.inference.merging import Merging
from visionapps.inference.sources import ArraySource
from visionapps.models import fast_rcnn, faster_rcnn
from visionapps.models.options import Regions
from visionapps.structures import Rescale
from visionapps.training.found import Found
from visionapps.windows import Window


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    files = write_fake_objects(tmp_path_factory.mktemp("photos"), images=4, size=90)
    found = examine_objects(ObjectDataset(str(files.images), str(files.annotations)))
    draw = np.random.default_rng(0)
    corners = draw.uniform(0, 60, (4, 30, 2))
    boxes = np.concatenate([corners, corners + draw.uniform(8, 30, (4, 30, 2))], axis=2).astype(np.float32)
    return [replace(p, proposals=b) for p, b in zip((*found.train, *found.val), boxes, strict=True)]


def as_validated(model, photos, view):
    found = Found()
    items = EvalObjects(photos, view=view)
    with torch.inference_mode():
        for item in items:
            batch = collate_objects([item])
            image = batch.image.to(memory_format=torch.channels_last)
            found.add(batch, model.eval().detect(image, batch.sizes, batch.proposals), [p.size for p in photos])
    return list(found.merged(photos, model.num_classes, Merging()).values())


@pytest.mark.parametrize("build", [faster_rcnn, fast_rcnn])
def test_a_scaled_photo_is_the_same_in_validation_and_prediction(photos, build):
    torch.manual_seed(0)
    model = build("mobilenetv2_050", num_classes=3, regions=Regions(hidden=32))
    model.limits = replace(model.limits, score=0.0, most=40)
    view = View(rescale=Rescale(131, 200))  # 90 px become 131.0 by a factor that no size of whole pixels has
    predictor = ObjectPredictor(model, rescale=view.rescale, device="cpu", batch=1, precision="fp32")
    predictor.propose = known({photo.name: photo.proposals for photo in photos})
    whole = [photo.image(Window(0, 0, *photo.size)) for photo in photos]
    sources = [ArraySource(np.moveaxis(i, -1, 0), name=p.name) for i, p in zip(whole, photos, strict=True)]
    for got, wanted in zip(predictor.detect_all(sources), as_validated(model, photos, view), strict=True):
        assert len(got) == len(wanted) > 10
        assert got.boxes == pytest.approx(wanted.boxes, abs=1e-3)
        assert got.scores == pytest.approx(wanted.scores, abs=1e-5)


def test_tiles_get_what_they_show_of_the_proposals_of_their_image(photos):
    seen = []
    model = fast_rcnn("mobilenetv2_050", num_classes=3)
    image = np.zeros((3, 100, 400), np.uint8)
    boxes = np.array([[10.0, 10, 30, 30], [120, 0, 140, 50], [60, 20, 200, 60]])
    predictor = ObjectPredictor(model, tile=128, overlap=0, device="cpu")
    given = known({"strip": boxes})
    predictor.propose = lambda glimpse: seen.append((glimpse.window, given(glimpse))) or seen[-1][1]
    predictor.detect(ArraySource(image, name="strip"))
    by_left = {window.col: found.tolist() for window, found in seen}
    assert by_left[0] == [[10, 10, 30, 30], [120, 0, 128, 50], [60, 20, 128, 60]]
    for left, found in by_left.items():
        shown = [b for b in boxes.tolist() if b[2] > left and b[0] < left + 128]
        assert [[b[0] + left, b[1], b[2] + left, b[3]] for b in found] == [
            [max(b[0], left), b[1], min(b[2], left + 128), b[3]] for b in shown
        ]


def test_an_image_without_proposals_is_named(photos):
    from visionapps.errors import DataError

    predictor = ObjectPredictor(fast_rcnn("mobilenetv2_050", num_classes=3), device="cpu")
    predictor.propose = known({"other.png": np.zeros((0, 4))})
    with pytest.raises(DataError, match=r"strip\.png: has no proposals"):
        predictor.detect(ArraySource(np.zeros((3, 40, 40), np.uint8), name="strip.png"))
    predictor.propose = search
    predictor.detect(ArraySource(np.zeros((3, 40, 40), np.uint8), name="strip.png"))
