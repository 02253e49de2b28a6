"""visionapps proposals: searching folders, going on after an interruption, reports."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from visionapps.cli.main import main
from visionapps.cli.recall_picture import recall_svg
from visionapps.data.images import read_image
from visionapps.data.proposal_recall import recall_report
from visionapps.data.proposals import read_proposals, write_proposals
from visionapps.data.proposing import propose
from visionapps.data.selective_search import SelectiveSearch, selective_search
from visionapps.errors import DataError, OutputError
from visionapps.objects import Objects

SEARCH = SelectiveSearch(most=50)


@pytest.fixture
def photos(tmp_path):
    """Six photos of 40 x 60 with a bright rectangle each, in two folders, and their annotations."""
    folder = tmp_path / "photos"
    annotations, images = [], []
    for i in range(6):
        image = np.random.default_rng(i).integers(60, 80, (40, 60, 3), dtype=np.uint8)
        image[10:25, 8 + i : 38 + i] = (220, 40, 40 + i)
        name = f"{'ab'[i % 2]}/{i}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)
        images.append({"id": i + 1, "file_name": name, "width": 60, "height": 40})
        box = {"image_id": i + 1, "category_id": 7, "bbox": [8 + i, 10, 30, 15], "area": 450, "iscrowd": 0, "id": i + 1}
        annotations.append(box)
    content = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "sign"}]}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    return folder


def paths(folder):
    return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*.png"))}


def test_a_folder_becomes_a_file_of_what_each_image_gives(photos, tmp_path, capsys):
    out = tmp_path / "p.npz"
    assert main(["proposals", "--images", str(photos), "--out", str(out), "--most", "50", "--workers", "2"]) == 0
    assert "6 images" in capsys.readouterr().out
    found = read_proposals(out)
    assert found.names == tuple(paths(photos))
    assert found.method == SEARCH.method
    for name, path in paths(photos).items():
        assert np.array_equal(found.of(name), selective_search(read_image(path), SEARCH))
    assert not out.with_name("p.npz.parts").exists()


def test_annotations_bring_a_report_a_json_and_a_picture(photos, tmp_path, capsys):
    out, report, picture = (tmp_path / name for name in ("p.npz", "report.json", "curves.svg"))
    annotations = tmp_path / "coco.json"
    arguments = ["--images", str(photos), "--annotations", str(annotations), "--out", str(out)]
    assert main(["proposals", *arguments, "--json", str(report), "--picture", str(picture)]) == 0
    text = capsys.readouterr().out
    assert "6 objects of 6 images" in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert rows["2000"][1] == "1.000"
    assert rows["sign"][1] == "6"
    found = json.loads(report.read_text())
    assert found["budgets"] == [100, 300, 1000, 2000]
    assert found["all"]["recall"][-1][0] == 1.0
    assert [group["name"] for group in found["classes"]] == ["sign"]
    root = ElementTree.fromstring(picture.read_text())
    lines = list(root.iter("{http://www.w3.org/2000/svg}polyline"))
    assert len(lines) == 4 + 2  # numbers of proposals; all and the small ones
    # the same from the file, without searching again
    assert main(["proposals", *arguments[:4], "--judge", str(out)]) == 0
    assert capsys.readouterr().out == text


def test_a_config_names_photos_annotations_and_the_file(photos, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    out = tmp_path / "named.npz"
    config.write_text(
        f"data:\n  dataset:\n    images: {photos}\n    annotations: {tmp_path / 'coco.json'}\n    proposals: {out}\n"
    )
    assert main(["proposals", "--config", str(config), "--most", "20"]) == 0
    assert len(read_proposals(out)) == 6
    assert main(["proposals", "--config", str(config)]) == 1
    assert "exists already" in capsys.readouterr().err


def test_an_interrupted_run_goes_on_with_the_images_that_are_missing(photos, tmp_path, monkeypatch):
    import visionapps.data.proposing as module

    monkeypatch.setattr(module, "_CHUNK", 2)
    searched = []

    def watched(image, search):
        searched.append(image.sum())
        if len(searched) == 5:
            raise KeyboardInterrupt
        return selective_search(image, search)

    monkeypatch.setattr(module, "selective_search", watched)
    out = tmp_path / "p.npz"
    with pytest.raises(KeyboardInterrupt):
        propose(paths(photos), out, SEARCH, workers=1)
    assert not out.exists()
    kept = [name for part in sorted((tmp_path / "p.npz.parts").glob("*.npz")) for name in read_proposals(part).names]
    assert len(kept) in (2, 4)
    seen, before = [], len(searched)
    found = propose(paths(photos), out, SEARCH, workers=1, progress=seen.append)
    assert seen[0] == len(kept)
    assert sum(seen) == 6
    assert len(searched) == before + 6 - len(kept)
    assert not (tmp_path / "p.npz.parts").exists()
    whole = propose(paths(photos), tmp_path / "q.npz", SEARCH, workers=3)
    assert out.read_bytes() == (tmp_path / "q.npz").read_bytes()
    assert found.fingerprint == whole.fingerprint


def test_large_images_are_searched_by_fewer_threads(photos, monkeypatch):
    import visionapps.data.proposing as module

    monkeypatch.setattr(module.os, "cpu_count", lambda: 16)
    needed = 300 * 40 * 60
    for memory, expected in ((2 * needed * 5, 5), (needed // 2, 1), (10**12, 16), (0, 1)):
        monkeypatch.setattr(module, "total_memory", lambda memory=memory: memory)
        assert module._workers(paths(photos), paths(photos)) == expected


def test_leftovers_of_another_search_are_not_mixed_in(photos, tmp_path):
    parts = tmp_path / "p.npz.parts"
    write_proposals(parts / "000000.npz", {"a/0.png": np.zeros((0, 4))}, sizes={"a/0.png": (40, 60)}, method="other")
    with pytest.raises(OutputError, match=r"searched otherwise \(other\) has left; remove the folder"):
        propose(paths(photos), tmp_path / "p.npz", SEARCH)


def test_an_image_that_changed_since_is_searched_again(photos, tmp_path):
    import os

    out = tmp_path / "p.npz"
    parts = tmp_path / "p.npz.parts"
    images = paths(photos)
    stale = {"a/0.png": np.array([[0, 0, 1, 1]]), "b/1.png": np.array([[0, 0, 2, 2]])}
    write_proposals(parts / "000000.npz", stale, sizes=dict.fromkeys(stale, (40, 60)), method=SEARCH.method)
    later = (parts / "000000.npz").stat().st_mtime + 10
    os.utime(images["a/0.png"], (later, later))
    found = propose(images, out, SEARCH)
    assert found.of("b/1.png").tolist() == [[0, 0, 2, 2]]  # not searched again
    assert len(found.of("a/0.png")) > 10


def test_a_broken_image_is_named_and_the_others_are_kept(photos, tmp_path, capsys):
    good = (photos / "a" / "2.png").read_bytes()
    (photos / "a" / "2.png").write_bytes(good[:60])
    out = tmp_path / "p.npz"
    assert main(["proposals", "--images", str(photos), "--out", str(out)]) == 1
    message = capsys.readouterr().err
    assert "1 of 6 images cannot be searched, the first:" in message
    assert "a/2.png: cannot be decoded" in message
    assert not out.exists()
    (photos / "a" / "2.png").write_bytes(good)
    assert main(["proposals", "--images", str(photos), "--out", str(out)]) == 0
    assert len(read_proposals(out)) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "{photos}"], "no file to write; give --out FILE.npz"),
        (["--images", "{photos}", "--out", "p.json"], "proposals are kept in .npz files"),
        (["--images", "{photos}", "--judge", "p.npz"], "give --annotations, and no --out"),
        (["--images", "nowhere", "--out", "p.npz"], "nowhere: no such folder"),
        (["--images", "{photos}", "--out", "p.npz", "--most", "0"], "most 0 must be at least 1"),
        (["--images", "{photos}", "--out", "p.npz", "--workers", "0"], "--workers 0: at least 1"),
        (["--images", "{photos}", "--out", "p.npz", "--bands", "red", "blue"], "1, 3 or more channels is expected"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(photos, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["proposals", *(a.format(photos=photos) for a in arguments)]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_a_file_of_other_photos_is_refused(photos, tmp_path, capsys):
    other = tmp_path / "other.npz"
    write_proposals(other, {"x.png": np.zeros((0, 4))}, sizes={"x.png": (5, 5)})
    arguments = ["--images", str(photos), "--annotations", str(tmp_path / "coco.json"), "--judge", str(other)]
    assert main(["proposals", *arguments]) == 1
    assert "has no proposals for 6 of the 6 images (a/0.png, a/2.png, a/4.png, ...)" in capsys.readouterr().err


def test_names_are_escaped_in_the_picture():
    truth = [Objects([[0, 0, 10, 10], [0, 0, 5, 5]], [0, 1])]
    report = recall_report(truth, [np.array([[0, 0, 10, 10.0]])], ("a<b", "c&d"))
    root = ElementTree.fromstring(recall_svg(report, 'x < "y"'))
    texts = [e.text for e in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a<b", "c&d", 'x < "y"'} <= set(texts)


def test_an_image_list_without_objects_to_find_has_no_recall(photos, tmp_path, capsys):
    content = json.loads((tmp_path / "coco.json").read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    (tmp_path / "coco.json").write_text(json.dumps(content))
    arguments = [
        "--images",
        str(photos),
        "--annotations",
        str(tmp_path / "coco.json"),
        "--out",
        str(tmp_path / "p.npz"),
    ]
    assert main(["proposals", *arguments]) == 0
    assert "so there is no recall to report" in capsys.readouterr().out


def test_the_file_and_the_folder_of_a_dataset_meet_in_its_photos(photos, tmp_path):
    from visionapps.data.object_dataset import ObjectDataset
    from visionapps.data.object_doctor import examine_objects

    out = tmp_path / "p.npz"
    propose(paths(photos), out, SEARCH)
    dataset = ObjectDataset(str(photos), str(tmp_path / "coco.json"), proposals=str(out), cache=str(tmp_path / "cache"))
    found = examine_objects(dataset, pixels=False)
    for photo in (*found.train, *found.val):
        assert np.array_equal(photo.proposals, read_proposals(out).of(photo.name))
    write_proposals(out, {"x.png": np.zeros((0, 4))}, sizes={"x.png": (5, 5)}, overwrite=True)
    with pytest.raises(DataError, match="no proposals for 6 of the 6 images"):
        examine_objects(dataset, pixels=False)


@pytest.mark.parametrize("annotated", [True, False])
def test_bands_are_chosen_by_number(photos, tmp_path, annotated):
    out = tmp_path / "p.npz"
    words = ["proposals", "--images", str(photos), "--out", str(out), "--most", "9", "--bands", "3", "2", "1"]
    assert main([*words, *(["--annotations", str(tmp_path / "coco.json")] if annotated else [])]) == 0
    name, path = next(iter(paths(photos).items()))
    expected = selective_search(read_image(path)[:, :, ::-1], SelectiveSearch(most=9))
    assert np.array_equal(read_proposals(out).of(name), expected)


def test_a_report_without_annotations_is_refused_before_the_search(photos, tmp_path, capsys):
    out = tmp_path / "p.npz"
    words = ["proposals", "--images", str(photos), "--out", str(out)]
    for more in (["--json", str(tmp_path / "r.json")], ["--picture", str(tmp_path / "r.svg")]):
        assert main([*words, *more]) == 1
        assert "hold the report, which needs annotations" in capsys.readouterr().err
    assert main([*words, "--ignore", "sign"]) == 1
    assert "--ignore: goes with --annotations" in capsys.readouterr().err
    assert not out.exists()


def test_a_report_about_no_objects_is_written_and_says_so(photos, tmp_path, capsys):
    content = json.loads((tmp_path / "coco.json").read_text()) | {"annotations": []}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    report, picture = tmp_path / "r.json", tmp_path / "r.svg"
    words = ["proposals", "--images", str(photos), "--annotations", str(tmp_path / "coco.json"), "--most", "9"]
    words += ["--out", str(tmp_path / "p.npz"), "--json", str(report), "--picture", str(picture)]
    assert main(words) == 0
    assert f"so there is no recall to report, and no curve for {picture}" in capsys.readouterr().out
    assert json.loads(report.read_text())["all"]["objects"] == 0
    assert not picture.exists()
