"""Files of proposals, and how much of the objects they cover."""

import math
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visionapps.data.proposal_recall import IOUS, best_overlaps, recall_report
from visionapps.data.proposals import read_proposals, write_proposals
from visionapps.errors import DataError, OutputError
from visionapps.objects import Objects

BOXES = {
    "b/two.jpg": np.array([[0, 0, 10, 10], [2.5, 3, 20, 30]], np.float32),
    "a.jpg": np.zeros((0, 4), np.float32),
    "c.png": np.array([[1, 1, 2, 2]], np.float32),
}
SIZES = {"b/two.jpg": (30, 20), "a.jpg": (5, 5), "c.png": (2, 2)}
SCORES = {"b/two.jpg": np.array([0.9, 0.4]), "a.jpg": np.zeros(0), "c.png": np.array([1.0])}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "p.npz"
    write_proposals(path, BOXES, SCORES, sizes=SIZES, method="by hand")
    return path


def test_what_was_written_is_read(file):
    found = read_proposals(file)
    assert found.names == ("a.jpg", "b/two.jpg", "c.png")
    assert found.method == "by hand"
    for name, boxes in BOXES.items():
        assert np.array_equal(found.of(name), boxes)
        assert found.of(name).dtype == np.float32
        assert np.array_equal(found.scores_of(name), SCORES[name].astype(np.float32))
    assert np.array_equal(found.of("b/two.jpg", 1), BOXES["b/two.jpg"][:1])
    found.require(SIZES)
    found.require({"c.png": (2, 2)})


def test_boxes_stay_in_the_file_and_survive_its_replacement(file):
    found = read_proposals(file)
    assert isinstance(found.boxes, np.memmap)
    taken = found.of("c.png")
    assert not isinstance(taken, np.memmap)
    write_proposals(file, {"c.png": np.array([[0, 0, 1, 1]])}, sizes=SIZES, overwrite=True)
    assert taken.tolist() == [[1, 1, 2, 2]]


def test_any_npz_of_the_same_arrays_is_read_also_a_compressed_one(tmp_path):
    path = tmp_path / "p.npz"
    np.savez_compressed(
        path,
        format=1,
        names=np.array(["x.jpg"]),
        sizes=np.array([[9, 9]]),
        counts=np.array([1]),
        boxes=np.array([[0.0, 0, 5, 5]]),
    )
    found = read_proposals(path)
    assert found.of("x.jpg").tolist() == [[0, 0, 5, 5]]
    assert found.scores_of("x.jpg") is None


def test_a_file_of_another_dataset_is_refused_with_the_names_that_are_missing(file):
    found = read_proposals(file)
    with pytest.raises(DataError, match=r"no proposals for 4 of the 5 images \(1.jpg, 2.jpg, 3.jpg, ...\); it holds 3"):
        found.require({"c.png": (2, 2)} | {f"{i}.jpg": (1, 1) for i in range(1, 5)})
    with pytest.raises(DataError, match=r"c.png are for an image of 2x2.*dataset's has 4x2; the images were changed"):
        found.require({"c.png": (4, 2)})
    with pytest.raises(DataError, match=r"no proposals for d\.jpg"):
        found.of("d.jpg")


@pytest.mark.parametrize(
    ("box", "shown"),
    [
        ([np.nan, 0, 1, 1], "nan"),
        ([0, 0, np.inf, 1], "inf"),
        ([1, 0, 0, 1], "1, 0, 0, 1"),
        ([0, 0, 0, 1], "0, 0, 0, 1"),
        ([0, 0, 1, 2.5], "0, 0, 1, 2.5"),
        ([-1, 0, 1, 1], "-1, 0, 1, 1"),
    ],
)
def test_impossible_boxes_are_refused_when_written_and_when_read(tmp_path, box, shown):
    path = tmp_path / "p.npz"
    many = np.tile(np.array([[0.0, 0, 1, 1]], np.float32), (7, 1))
    boxes = {"a.jpg": many, "c.png": np.array([[0, 0, 1, 1], box], np.float32)}
    sizes = {"a.jpg": (2, 2), "c.png": (2, 2)}
    with pytest.raises(DataError, match=rf"box 1 of c.png is \(.*{shown}.*image of 2x2"):
        write_proposals(path, boxes, sizes=sizes)
    assert not path.exists()
    np.savez(
        path,
        format=1,
        names=np.array(["a.jpg", "c.png"]),
        sizes=np.array([[2, 2]] * 2),
        counts=np.array([7, 2]),
        boxes=np.concatenate(list(boxes.values())),
    )
    with pytest.raises(DataError, match=rf"{path}: box 1 of c.png is \(.*{shown}"):
        read_proposals(path)


def test_boxes_are_checked_against_their_own_image_also_across_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("visionapps.data.proposals._CHUNK", 5)
    counts = [3, 0, 4, 1, 0, 9, 0]
    names = [f"{i}.jpg" for i in range(len(counts))]
    sizes = {name: (10 + i, 20 + i) for i, name in enumerate(names)}
    full = {n: np.tile(np.array([[0.0, 0, 20 + i, 10 + i]]), (counts[i], 1)) for i, n in enumerate(names)}
    write_proposals(tmp_path / "p.npz", full, sizes=sizes)
    for i, name in enumerate(names):
        if counts[i]:
            bad = {k: v.copy() for k, v in full.items()}
            bad[name][-1, 2] += 1
            with pytest.raises(DataError, match=rf"box {counts[i] - 1} of {name} is"):
                write_proposals(tmp_path / "q.npz", bad, sizes=sizes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "has format 2, but format 1 of proposals is expected"),
        ({"format": None}, "has no format number"),
        ({"boxes": None}, "has nothing under 'boxes'"),
        ({"boxes": np.zeros((3, 5))}, r"boxes has the shape \(3, 5\), not \(3, 4\)"),
        ({"counts": np.array([0, 2, 2])}, r"boxes has the shape \(3, 4\), not \(4, 4\)"),
        ({"counts": np.array([0.0, 2, 1])}, r"has float64 of shape \(3,\) under 'counts'"),
        ({"names": np.array(["a.jpg", "a.jpg", "c.png"])}, "names an image twice"),
        ({"names": np.array(["a.jpg", "b.jpg", "c.png"])}, "do not belong to its fingerprint"),
        ({"scores": np.array([1.0, np.nan, 0])}, "score 1 is not finite"),
        ({"scores": np.array([1.0])}, r"scores has the shape \(1,\), not \(3,\)"),
    ],
)
def test_files_that_contradict_themselves_are_refused(file, change, message):
    with np.load(file) as archive:
        arrays = {name: archive[name] for name in archive.files} | change
    np.savez(file, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(DataError, match=message):
        read_proposals(file)


def test_pickles_and_foreign_files_are_never_opened(tmp_path):
    path = tmp_path / "p.npz"
    with pytest.raises(DataError, match="no such file of proposals"):
        read_proposals(path)
    path.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(DataError, match="cannot be read as proposals"):
        read_proposals(path)
    np.savez(path, format=1, boxes=np.array([{"a": 1}], object))
    with pytest.raises(DataError, match=r"cannot be read as proposals .*Python objects"):
        read_proposals(path)
    np.savez(path, format=1, names=np.array([{"a": 1}], object))
    with pytest.raises(DataError, match=r"cannot be read as proposals .*allow_pickle"):
        read_proposals(path)
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "a.npy").rename(path)
    with pytest.raises(DataError, match="single array"):
        read_proposals(path)


def test_a_truncated_file_is_refused(file):
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DataError, match="cannot be read as proposals"):
        read_proposals(file)


def test_writing_refuses_other_suffixes_existing_files_and_missing_sizes(tmp_path, file):
    with pytest.raises(DataError, match=r"kept in .npz files"):
        write_proposals(tmp_path / "p.json", BOXES, sizes=SIZES)
    with pytest.raises(OutputError, match="exists already"):
        write_proposals(file, BOXES, sizes=SIZES)
    with pytest.raises(DataError, match=r"sizes or scores of a.jpg and 0 more are missing"):
        write_proposals(tmp_path / "q.npz", BOXES, sizes={k: v for k, v in SIZES.items() if k != "a.jpg"})
    with pytest.raises(DataError, match=r"c.png has 1 boxes, but 2 scores"):
        write_proposals(tmp_path / "q.npz", BOXES, SCORES | {"c.png": np.ones(2)}, sizes=SIZES)


def test_members_are_stored_so_that_they_can_be_mapped(file):
    with zipfile.ZipFile(file) as archive:
        assert archive.getinfo("boxes.npy").compress_type == zipfile.ZIP_STORED


def loop_iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    common = width * height
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


corner = st.integers(0, 30)
box = st.tuples(corner, corner, st.integers(1, 20), st.integers(1, 20)).map(
    lambda t: (t[0], t[1], t[0] + t[2], t[1] + t[3])
)


@given(st.lists(box, max_size=5), st.lists(box, max_size=12))
@settings(max_examples=60, deadline=None)
def test_best_overlaps_are_those_of_a_loop(objects, proposals):
    budgets = (1, 3, 100)
    found = best_overlaps(
        np.array(objects, np.float64).reshape(-1, 4), np.array(proposals, np.float32).reshape(-1, 4), budgets
    )
    for i, one in enumerate(objects):
        for j, budget in enumerate(budgets):
            expected = max((loop_iou(one, p) for p in proposals[:budget]), default=0.0)
            assert found[i, j] == pytest.approx(expected, abs=1e-12)


def test_recall_by_hand():
    # a 10 x 10 object of class 0 met with IoU 0.8 by proposal 2; one of 100 x 100 of class 1 met exactly by proposal 1
    truth = [
        Objects([[0, 0, 10, 10], [100, 100, 200, 200], [0, 0, 300, 300]], [0, 1, 1], crowd=[False, False, True]),
        Objects([[5, 5, 45, 45]], [0], difficult=[False]),
    ]
    proposals = [np.array([[100, 100, 200, 200], [0, 0, 10, 8]], np.float32), np.zeros((0, 4), np.float32)]
    report = recall_report(truth, proposals, ("car", "house", "boat"), budgets=(1, 2))
    assert report.all.objects == 3
    assert report.all.recall[:, IOUS.index(0.5)].tolist() == pytest.approx([1 / 3, 2 / 3])
    assert report.all.recall[:, IOUS.index(0.8)].tolist() == pytest.approx([1 / 3, 2 / 3])
    assert report.all.recall[:, IOUS.index(0.85)].tolist() == pytest.approx([1 / 3, 1 / 3])
    assert report.all.average.tolist() == pytest.approx([1 / 3, (7 * 2 / 3 + 3 / 3) / 10])
    assert report.all.overlap.tolist() == pytest.approx([1 / 3, 1.8 / 3])
    assert [(g.name, g.objects) for g in report.sizes] == [("small", 1), ("medium", 1), ("large", 1)]
    car, house, boat = report.classes
    assert car.recall[1, 0] == 0.5
    assert house.average.tolist() == [1.0, 1.0]
    assert boat.objects == 0
    assert math.isnan(boat.average[0])
    assert boat.to_dict()["recall"] is None
    assert report.mean_proposals == 1.0
    assert report.to_dict()["all"]["average_recall"][0] == pytest.approx(1 / 3)


def test_recall_wants_proposals_of_every_image_and_budgets_that_ascend():
    with pytest.raises(DataError, match="1 images with annotations, 0 with proposals"):
        recall_report([Objects.none()], [], ("a",))
    with pytest.raises(DataError, match="numbers from 1 on that ascend"):
        recall_report([], [], ("a",), budgets=(5, 2))
