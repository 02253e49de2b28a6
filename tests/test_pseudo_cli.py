"""The verb pseudo on an untrained network: what is kept, going on, what the teacher saw, and what is refused."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.transform import from_origin

from visionapps.cli.main import main
from visionapps.competition.soup import average
from visionapps.data.images import read_mask
from visionapps.data.likeness import thumbnail
from visionapps.data.pseudo_table import PseudoTable, find_table
from visionapps.data.seen import Seen, content
from visionapps.errors import DataError
from visionapps.inference.bundle import Bundle, load
from visionapps.models import unet
from visionapps.structures import LabelSpace

FIXED = ["--device", "cpu", "--precision", "fp32", "--tile", "64"]
LABELS = LabelSpace(("roof", "road", "tree"), ((200, 0, 0), (0, 100, 0), (0, 0, 50)))
SIZE = (70, 96)


def picture(seed: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize(SIZE[::-1], Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that was trained on seen.png and one that does not know, and three images that it never saw."""
    home = tmp_path_factory.mktemp("pseudo")
    (home / "photos").mkdir()
    for seed, name in enumerate(("photos/a", "photos/b", "seen", "turned")):
        Image.fromarray(picture(seed)).save(home / f"{name}.png")
    Image.fromarray(np.rot90(picture(2))).save(home / "turned.png")
    grid = {"crs": "EPSG:32633", "transform": from_origin(389_000, 5_821_000, 0.25, 0.25)}
    with rasterio.open(
        home / "photos" / "c.tif", "w", driver="GTiff", height=70, width=96, count=3, dtype="uint8", nodata=0, **grid
    ) as file:
        pixels = picture(5).transpose(2, 0, 1).clip(1)
        pixels[:, :10, :10] = 0
        file.write(pixels)
    torch.manual_seed(4)
    model = unet("resnet10t", 3, channels=(8, 8, 8, 8, 8)).eval()
    seen = Seen.from_parts([content(home / "seen.png")], [thumbnail(picture(2))])
    Bundle(model, LABELS, 64, seen=seen).save(home / "bundle")
    Bundle(model, LABELS, 64).save(home / "old")
    return home


def run(home: Path, *words: object, bundle: str = "bundle", images: str = "photos", out: str = "out") -> int:
    return main(["pseudo", *map(str, (home / bundle, home / images, "--out", home / out, *FIXED, *words))])


def predicted(home: Path, out: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and planes of scores, as predict writes them."""
    place = home / out / "predictions"
    mask = next(path for path in place.glob(f"{name}.*") if path.suffix in (".png", ".tif"))
    with rasterio.open(place / f"{name}_scores.tif") as file:
        return read_mask(mask).values, file.read()


@pytest.fixture(scope="module")
def labelled(home: Path) -> Path:
    assert run(home, "--keep", "0.4", out="kept") == 0
    return home / "kept"


def test_masks_hold_the_surest_share_of_each_class_and_255_elsewhere(home, labelled):
    names = ("a", "b", "c")
    labels, scores = zip(*(predicted(home, "kept", name) for name in names), strict=True)
    assert all(len(planes) == 1 for planes in scores)
    least = []
    for k in range(3):
        own = np.sort(np.concatenate([p[0][m == k] for m, p in zip(labels, scores, strict=True)]))[::-1]
        least.append(own[int(np.ceil(0.4 * len(own))) - 1] if len(own) else 255)
    assert len({int(m) for mask in labels for m in np.unique(mask)} - {255}) > 1, "the case needs several classes"
    for name, own, planes in zip(names, labels, scores, strict=True):
        path = labelled / "masks" / f"{name}{'.tif' if name == 'c' else '.png'}"
        kept = (own != 255) & (planes[0] >= np.array([*least, *[255] * 253])[own])
        np.testing.assert_array_equal(read_mask(path).values, np.where(kept, own, 255))
    assert (predicted(home, "kept", "c")[0][:10, :10] == 255).all()
    with rasterio.open(home / "photos" / "c.tif") as image, rasterio.open(labelled / "masks" / "c.tif") as mask:
        assert (mask.crs, mask.transform) == (image.crs, image.transform)


def test_the_index_says_classes_rule_teacher_photos_and_what_was_kept(home, labelled):
    said = json.loads((labelled / "masks" / "pseudo.json").read_text())
    assert said["rule"] == {"confidence": None, "keep": 0.4}
    kept = sum((read_mask(path).values != 255).sum() for path in (labelled / "masks").glob("*.[pt][ni][gf]"))
    assert said["report"]["kept"] == kept
    assert said["report"]["pixels"] == 3 * 70 * 96 - 100
    table = PseudoTable.load(labelled / "masks")
    assert table.names == LABELS.names
    assert not table.soft
    assert dict(table.photos) == {path.stem: content(path).hex() for path in (home / "photos").iterdir()}
    np.testing.assert_array_equal(table.seen.digests, load(home / "bundle").seen.digests)
    assert find_table(labelled)[0] == labelled / "masks"


def test_another_rule_uses_the_predictions_again_and_replaces_nothing_without_a_word(home, labelled, capsys, tmp_path):
    shutil.copytree(labelled, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "predictions").glob("*.*g")}
    assert run(home, out=str(tmp_path / "out")) == 1
    assert "masks: exists already; choose another output, or replace it with --overwrite" in capsys.readouterr().err
    assert run(home, "--confidence", "0.0001", "--overwrite", out=str(tmp_path / "out")) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    own = predicted(home, "kept", "a")[0]
    np.testing.assert_array_equal(read_mask(tmp_path / "out" / "masks" / "a.png").values, own)
    said = capsys.readouterr().out
    assert re.search(r"all +20060 +100.0% +- +- +-", said)
    shutil.rmtree(tmp_path / "out" / "masks")
    assert run(home, "--tta", "flips", out=str(tmp_path / "out")) == 1
    assert "holds predictions of another teacher, or made in another way (other views); " in capsys.readouterr().err
    with pytest.raises(DataError, match="the pseudo-labels are not finished, only predictions are there; run the same"):
        find_table(tmp_path / "out")


def test_a_run_goes_on_where_it_stopped_and_predicts_anew_what_is_another_photo_by_now(home, labelled, tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(home / "photos", photos)
    shutil.copytree(labelled, out)  # the same photos, so that their predictions are taken
    shutil.rmtree(out / "masks")
    kept = {path: path.stat().st_mtime_ns for path in (out / "predictions").glob("c*.tif")}
    expected = {path: path.read_bytes() for path in (out / "predictions").glob("b*")}
    for path in expected:
        path.unlink()
    Image.fromarray(picture(7)).save(photos / "a.png")
    before = predicted(home, str(out), "a")[1]
    assert run(home, "--keep", "0.4", images=str(photos), out=str(out)) == 0
    assert len(kept) == 2
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert {path: path.read_bytes() for path in expected} == expected
    assert (predicted(home, str(out), "a")[1] != before).any()
    assert PseudoTable.load(out / "masks").photos["a"] == content(photos / "a.png").hex()


def test_soft_labels_are_the_probabilities_of_all_classes_and_0_where_there_is_no_data(home):
    assert run(home, "--soft", out="soft") == 0
    for name in ("a", "c"):
        own, planes = predicted(home, "soft", name)
        with rasterio.open(home / "soft" / "masks" / f"{name}.tif") as file:
            soft = file.read().astype(int)
        valid = own != 255
        assert (soft[:, ~valid] == 0).all()
        np.testing.assert_array_equal(soft.argmax(0)[valid], own[valid])
        assert np.abs(soft[:, valid] - planes[1:][:, valid] * (255 / 254)).max() <= 2
    assert PseudoTable.load(home / "soft" / "masks").soft


def test_what_the_teacher_saw_is_refused_by_name_also_turned_and_can_be_left_out(home, capsys, tmp_path):
    for name in ("seen.png", "turned.png", "photos/a.png"):
        shutil.copy(home / name, tmp_path)
    assert run(home, images=str(tmp_path), out=str(tmp_path / "out")) == 1
    said = capsys.readouterr().err
    assert "2 of 3 photos trained the teacher, which would only repeat what it remembers" in said
    assert "seen.png (" in said
    assert "trained on this very file" in said
    assert "turned.png (" in said
    assert re.search(r"trained on one that looks like it, likeness (0\.9\d|1\.00)", said)
    assert not (tmp_path / "out").exists()
    assert run(home, "--skip-seen", "--keep", "0.5", images=str(tmp_path), out=str(tmp_path / "out")) == 0
    assert "trained on       2 photos, left out" in capsys.readouterr().out
    assert [p.name for p in sorted((tmp_path / "out" / "masks").glob("*.png"))] == ["a.png"]
    assert run(home, "--skip-seen", images="seen.png", out="never") == 1
    assert "all 1 photos trained the teacher; give photos that it never saw" in capsys.readouterr().err


def test_a_bundle_that_does_not_know_its_photos_needs_a_word_of_its_user(home, capsys, tmp_path):
    assert run(home, bundle="old", images="photos/a.png", out=str(tmp_path)) == 1
    assert "old: does not know which photos trained it" in capsys.readouterr().err
    assert run(home, "--vouch", "--keep", "1", bundle="old", images="photos/a.png", out=str(tmp_path)) == 0
    assert PseudoTable.load(tmp_path / "masks").seen is None
    assert run(home, "--member", home / "old", images="photos/a.png", out=str(tmp_path / "two")) == 1
    assert "old: does not know which photos" in capsys.readouterr().err


def test_what_models_saw_goes_with_their_mean_and_a_damaged_list_is_told(home, capsys, tmp_path):
    again = shutil.copytree(home / "bundle", tmp_path / "again")
    np.testing.assert_array_equal(average([home / "bundle", again]).seen.digests, load(again).seen.digests)
    assert average([home / "bundle", home / "old"]).seen is None  # one of them does not know
    shutil.copytree(home / "bundle", tmp_path / "bundle")
    (tmp_path / "bundle" / "seen.npz").write_bytes(b"PK")
    assert run(home, bundle=str(tmp_path / "bundle"), out="never") == 1
    assert "seen.npz: damaged (" in capsys.readouterr().err


def test_a_damaged_image_is_told_and_no_label_is_written(home, capsys, tmp_path):
    shutil.copy(home / "photos" / "a.png", tmp_path / "a.png")
    whole = (home / "photos" / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    assert run(home, images=str(tmp_path), out=str(tmp_path / "out")) == 1
    assert "b.png: cannot be decoded, truncated or corrupt" in capsys.readouterr().err
    assert not (tmp_path / "out" / "masks").exists()


def test_a_rule_that_keeps_no_pixel_is_told_with_the_surest_one_and_the_predictions_serve_again(home, capsys, tmp_path):
    assert run(home, "--confidence", "0.99", images="photos/a.png", out=str(tmp_path)) == 1
    surest = predicted(home, str(tmp_path), "a")[1][0].max() / 254
    said = capsys.readouterr().err
    assert f"no pixel of 1 photos has a confidence of 0.99, the surest has {surest:.3f}, so nothing would be" in said
    assert "give less with --confidence, or a share of each class with --keep; what is predicted is kept" in said
    assert not (tmp_path / "masks").exists()
    assert run(home, "--keep", "0.5", images="photos/a.png", out=str(tmp_path)) == 0


def test_rasters_are_refused_where_labels_would_not_lie_on_their_pixels(home, capsys, tmp_path):
    assert run(home, "--gsd", "0.5", out=str(tmp_path)) == 1
    said = capsys.readouterr().err
    assert "c.tif: has 70 x 96 px (H x W), but would be read at 0.5 m per pixel and labelled on 35 x 48" in said
    assert "label the rasters as they are with --gsd 0, or resample them to 0.5 m" in said
    assert not (tmp_path / "predictions").exists()
    assert run(home, "--gsd", "0.5", "--keep", "1", images="photos/a.png", out=str(tmp_path)) == 0  # no raster
    assert run(home, "--gsd", "0.25", "--keep", "1", images="photos/c.tif", out=str(tmp_path / "same")) == 0


def test_a_place_that_is_taken_and_a_bundle_among_the_images_are_told_before_any_photo_is_read(
    home, labelled, capsys, tmp_path
):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert run(home, images=str(tmp_path), out=str(labelled)) == 1
    assert "masks: exists already; choose another output, or replace it with --overwrite" in capsys.readouterr().err
    assert run(home, "--overwrite", images=str(tmp_path), out=str(tmp_path / "broken.png")) == 1
    assert "broken.png: is a file, but labels and predictions go to a folder; choose another --out" in (
        capsys.readouterr().err
    )
    (tmp_path / "all.yaml").write_text("members: [a]")
    for second, said in {
        home / "old": f"is a bundle, no image; average it with the teacher by --member {home / 'old'}",
        tmp_path / "all.yaml": "is the file of an ensemble, no image; one teacher comes first, and photos follow it",
    }.items():
        assert run(home, images=str(second), out="never") == 1
        assert f"{second}: {said}" in capsys.readouterr().err
    (tmp_path / "list.yaml").write_text("none.png")
    assert main(["pseudo", str(home / "bundle"), f"@{tmp_path / 'list.yaml'}", "--out", str(home / "never")]) == 1
    assert "list.yaml: line 1: " in capsys.readouterr().err


def test_folders_that_hold_other_things_are_never_replaced(home, capsys, tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "truth.png").write_bytes(b"precious")
    assert run(home, "--overwrite", images="photos/a.png", out=str(tmp_path)) == 1
    assert "masks: holds other things than pseudo-labels, so nothing is done here; choose" in capsys.readouterr().err
    assert (tmp_path / "masks" / "truth.png").read_bytes() == b"precious"
    assert run(home, "--confidence", "1.2", images="photos/a.png", out="never") == 1
    assert "--confidence 1.2 must be above 0 and at most 1" in capsys.readouterr().err
    assert not (home / "never").exists()
