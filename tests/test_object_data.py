"""The data side of a detection run, on made-up objects: loaders, orders, processes."""

import logging

import numpy as np
import pytest
import torch
from drawn import rectangles

from visionapps.data.dataset import Split
from visionapps.data.fake_objects import write_fake_objects
from visionapps.data.object_crops import RandomObjects, View
from visionapps.data.object_dataset import ObjectDataset
from visionapps.data.object_transforms import object_aerial
from visionapps.errors import ConfigError, DataError
from visionapps.structures import Rescale
from visionapps.training.object_data import DetectionData, EpochOrder, view_warnings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("objects")
    return place, write_fake_objects(place, images=16, size=96)


def data(folder, *, view=View(), batch_size=3, **more):  # noqa: B008 - frozen
    place, files = folder
    split = Split(group=r"^(site\d+)_", val_groups=("site2",))
    dataset = ObjectDataset(str(files.images), str(files.annotations), split=split, cache=str(place / "cache"))
    return DetectionData(dataset, view=view, batch_size=batch_size, workers=more.pop("workers", 0), **more)


def ready(folder, **more):
    made = data(folder, **more)
    made.setup("fit")
    return made


def test_facts_of_the_data_are_known_after_setup_and_not_before(folder):
    made = data(folder)
    with pytest.raises(ConfigError, match=r"call setup\('fit'\) before"):
        made.labels  # noqa: B018
    made.setup("fit")
    assert made.labels.names == ("disc", "square", "triangle")
    assert made.category_ids == (3, 7, 20)
    assert (made.bands, made.dtype) == (3, "uint8")
    assert len(made.train_photos) == 12
    assert [photo.name for photo in made.val_photos] == [f"site2_{n}.png" for n in range(1, 5)]
    assert made.most_objects == max(len(p.objects) for p in (*made.train_photos, *made.val_photos)) >= 4


def test_an_epoch_shows_every_photo_once_and_the_next_epoch_others_of_their_variants(folder):
    loader = ready(folder, augment=object_aerial(), batch_size=4).train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        epochs.append(list(loader))
    for batches in epochs:
        assert sorted(key for batch in batches for key in batch.keys) == list(range(12))
        assert all(batch.image.shape == (4, 3, 96, 96) for batch in batches)
    assert not torch.equal(epochs[0][0].image, epochs[1][0].image)


def test_workers_make_the_same_batches_as_the_process_itself(folder):
    view = View(tile=64, mosaic=0.5, copy_paste=0.5)
    alone, workers = (
        list(ready(folder, view=view, augment=object_aerial(), workers=n).train_dataloader()) for n in (0, 2)
    )
    assert len(alone) == len(workers) > 3
    for ours, theirs in zip(alone, workers, strict=True):
        assert torch.equal(ours.image, theirs.image)
        assert ours.sizes == theirs.sizes
        for mine, other in zip(ours.targets, theirs.targets, strict=True):
            assert torch.equal(mine.boxes, other.boxes)
            assert torch.equal(mine.ignore, other.ignore)


def test_validation_covers_all_photos_and_keys_number_them(folder):
    made = ready(folder, view=View(tile=64, overlap=16, mosaic=1.0), augment=object_aerial())
    found = [
        (key, origin) for batch in made.val_dataloader() for key, origin in zip(batch.keys, batch.origins, strict=True)
    ]
    assert found == [(key, (row, col)) for key in range(4) for row in (0, 48) for col in (0, 48)]
    whole = ready(folder, view=View(rescale=Rescale(60, 60)))
    for batch in whole.val_dataloader():
        for key, target, factor in zip(batch.keys, batch.targets, batch.factors, strict=True):
            photo = whole.val_photos[key]
            assert target.boxes.numpy() / factor == pytest.approx(photo.objects.boxes, abs=1e-4)
            assert np.array_equal(target.ignore.numpy(), photo.objects.ignored)
            assert np.array_equal(target.labels.numpy(), photo.objects.labels)


def test_masks_come_when_they_are_asked_for(folder):
    made = ready(folder)
    assert next(iter(made.train_dataloader())).targets[0].masks is None
    made.masks = True
    batch = next(iter(made.train_dataloader()))
    for target, size in zip(batch.targets, batch.sizes, strict=True):
        assert target.masks.shape == (len(target.boxes), *size)
        areas = (target.boxes[:, 2:] - target.boxes[:, :2]).prod(1)
        assert ((target.masks.flatten(1).sum(1) / areas - 0.75).abs() < 0.5).all()


def test_the_rehearsal_batch_holds_the_two_fullest_photos(folder):
    made = ready(folder)
    batch = made.rehearsal_batch()
    counts = sorted((len(photo.objects) for photo in made.train_photos), reverse=True)[:2]
    assert sorted((len(target.boxes) for target in batch.targets), reverse=True) == counts


def test_processes_share_an_epoch_without_overlap():
    items = RandomObjects([rectangles((20, 20), [(0, 0, 5, 5)]) for _ in range(11)], view=View())
    orders = [EpochOrder(items, 2, rank, 3) for rank in range(3)]
    for epoch in (0, 4):
        for order in orders:
            order.set_epoch(epoch)
        shares = [list(order) for order in orders]
        assert [len(share) for share in shares] == [len(order) for order in orders] == [3, 3, 3]
        everything = sorted(i for share in shares for i in share)
        assert everything == list(range(11 * epoch, 11 * epoch + 9))


def test_batches_hold_photos_of_like_shape_and_come_in_random_order():
    shapes = [(40, 80), (80, 40), (60, 60)] * 40
    items = RandomObjects([rectangles(shape, [(0, 0, 9, 9)]) for shape in shapes], view=View())
    order = EpochOrder(items, 4)
    indices = list(order)
    assert sorted(indices) == list(range(120))
    batches = [{items.shape(i) for i in indices[start : start + 4]} for start in range(0, 120, 4)]
    assert sum(len(batch) > 1 for batch in batches) <= 4  # at most two seams in each of the two stretches
    first = [min(batch) for batch in batches]
    assert first != sorted(first)
    assert list(order) == indices


@pytest.mark.parametrize("form", ["voc", "yolo", "csv"])
def test_made_up_objects_are_the_same_in_every_form(tmp_path, folder, form):
    files = write_fake_objects(tmp_path, images=8, size=96, form=form)
    split = Split(group=r"^(site\d+)_", val_groups=("site2",))
    dataset = ObjectDataset(str(files.images), str(files.annotations), split=split, cache=str(tmp_path / "cache"))
    other = DetectionData(dataset, view=View(), batch_size=1, workers=0)
    other.setup("fit")
    coco = {photo.name: photo for photo in ready(folder).train_photos}
    for photo in other.train_photos:
        theirs = coco[photo.name].objects
        theirs = theirs if form == "csv" else theirs.take(~theirs.crowd)
        names = [other.labels.names[k] for k in photo.objects.labels]
        expected = [("disc", "square", "triangle")[k] for k in theirs.labels]
        order, same = (np.lexsort(objects.boxes.T) for objects in (photo.objects, theirs))
        assert photo.objects.boxes[order] == pytest.approx(theirs.boxes[same], abs=1e-6)
        assert [names[i] for i in order] == [expected[i] for i in same]


def test_views_that_cannot_be_right_are_warned_of(folder, caplog):
    photos = [rectangles((100, 200), [(0, 0, 90, 20), (0, 50, 20, 60)])]
    assert view_warnings(View(tile=128), photos) == []
    (text,) = view_warnings(View(tile=64), photos)
    assert "1 of 2 objects are longer than a tile of 64 px" in text
    large = [rectangles((10, 4000), [(0, 0, 9, 9)])]
    assert "photos of up to 10 x 4000 px are seen whole" in view_warnings(View(), large)[0]
    assert view_warnings(View(rescale=Rescale(8, 99)), large) == []
    with caplog.at_level(logging.WARNING):
        ready(folder, view=View(tile=8))
    assert "longer than a tile of 8 px" in caplog.text


def test_bad_settings_and_bad_data_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="batch_size 0 must be at least 1"):
        data(folder, batch_size=0)
    with pytest.raises(ConfigError, match="workers -1 must be at least 0"):
        data(folder, workers=-1)
    place, files = folder
    text = files.annotations.read_text().replace("site1_1.png", "gone.png")
    broken = tmp_path / "broken.json"
    broken.write_text(text)
    dataset = ObjectDataset(str(files.images), str(broken), cache=str(place / "cache"))
    with pytest.raises(DataError, match=r"gone\.png"):
        DetectionData(dataset, view=View(), batch_size=1, workers=0).setup("fit")


def test_no_photo_of_a_small_set_is_left_out_for_ever():
    wide, tall = rectangles((20, 40), [(2, 2, 9, 9)]), rectangles((40, 20), [(2, 2, 9, 9)])
    items = RandomObjects([wide] * 48 + [tall] * 2, view=View())
    order = EpochOrder(items, batch_size=4)
    used = set()
    for epoch in range(30):
        order.set_epoch(epoch)
        used |= {
            items[index].keys[0] for index in list(order)[:48]
        }  # what is left when the incomplete batch is dropped
    assert used == set(range(50))


def test_a_strip_has_a_shape_of_at_least_a_pixel():
    strip = rectangles((40, 30000), [(100, 2, 130, 30)])
    items = RandomObjects([strip, strip], view=View(rescale=Rescale(448, 448), scale=(0.5, 0.6)))
    assert items.shape(0)[0] == 1
    assert list(EpochOrder(items, batch_size=2)) != []
