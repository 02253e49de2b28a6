"""The verbs export, predict and evaluate, as a person types them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import yaml
from PIL import Image
from rasterio.crs import CRS
from rasterio.transform import Affine

from visionapps.cli.main import main
from visionapps.inference.bundle import Bundle
from visionapps.inference.predictor import Predictor
from visionapps.inference.sources import ArraySource
from visionapps.models import unet
from visionapps.segmentation.base import Segmentor
from visionapps.structures import LabelSpace

LABELS = LabelSpace(("roof", "road", "tree"), ((200, 0, 0), (0, 100, 0), (0, 0, 50)))
HERE = Affine(0.5, 0.1, 400000, 0.1, -0.5, 5000000)


@pytest.fixture(scope="module")
def model() -> Segmentor:
    torch.manual_seed(4)
    return unet("resnet10t", 3, channels=(8, 8, 8, 8, 8)).eval()


@pytest.fixture(scope="module")
def bundle(model: Segmentor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "bundle"
    Bundle(model, LABELS, 64).save(folder)
    return folder


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3): smooth, so that labels do not hang on the last bit."""
    small = np.random.default_rng(seed).integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def write_raster(path: Path, image: np.ndarray, nodata_rows: int = 0) -> None:
    height, width, bands = image.shape
    profile = {"driver": "GTiff", "dtype": image.dtype, "count": bands, "crs": CRS.from_epsg(32633), "transform": HERE}
    pixels = np.moveaxis(image, -1, 0).copy()
    pixels[:, :nodata_rows] = 0
    with rasterio.open(path, "w", height=height, width=width, nodata=0, **profile) as file:
        file.write(pixels)


def by_hand(model: Segmentor, image: np.ndarray) -> np.ndarray:
    predictor = Predictor(model, device="cpu")
    return np.concatenate([band for _, band in predictor.segment(ArraySource(np.moveaxis(image, -1, 0)))])


def test_photos_become_index_pngs_and_overlays_and_rasters_geotiffs_in_place(
    bundle: Path, model: Segmentor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    Image.fromarray(picture(100, 130)).save(tmp_path / "photos" / "a.png")
    Image.fromarray(picture(50, 40, seed=1)).save(tmp_path / "photos" / "b.png")
    write_raster(tmp_path / "ortho.tif", picture(150, 90), nodata_rows=15)
    words = ["predict", bundle, tmp_path / "photos", tmp_path / "ortho.tif", "--out", tmp_path / "maps"]
    assert main([*map(str, words), "--kind", "both"]) == 0
    names = sorted(p.name for p in (tmp_path / "maps").iterdir())
    assert names == [
        "a.png", "a_overlay.jpg", "b.png", "b_overlay.jpg", "ortho.tif", "ortho.tif.aux.xml", "ortho_overlay.tif",
    ]  # fmt: skip
    with Image.open(tmp_path / "maps" / "a.png") as mask:
        assert (np.asarray(mask) == by_hand(model, picture(100, 130))).mean() > 0.999
    with rasterio.open(tmp_path / "maps" / "ortho.tif") as file:
        assert tuple(file.transform)[:6] == pytest.approx(tuple(HERE)[:6])
        assert file.crs == CRS.from_epsg(32633)
        assert np.array_equal(file.read(1)[:, 0] == 255, np.arange(150) < 15)
    printed = capsys.readouterr().out
    assert "100 x 130" in printed
    assert "90.0%" in printed, "the valid share of the raster"


def test_one_bad_file_does_not_stop_the_others_and_is_reported_with_its_reason(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(picture(40, 40)).save(tmp_path / "in" / "good.jpg")
    (tmp_path / "in" / "cut.jpg").write_bytes((tmp_path / "in" / "good.jpg").read_bytes()[:400])
    write_raster(tmp_path / "in" / "deep.tif", picture(40, 40).astype(np.uint16))
    write_raster(tmp_path / "in" / "empty.tif", picture(40, 40), nodata_rows=40)
    assert main(["predict", str(bundle), str(tmp_path / "in"), "--out", str(tmp_path / "maps")]) == 1
    assert [p.name for p in (tmp_path / "maps").iterdir()] == ["good.png"], "no half-written map"
    printed = capsys.readouterr()
    assert "good.jpg" in printed.out
    assert "cut.jpg: cannot be decoded" in printed.err
    assert "deep.tif: pixels are uint16" in printed.err
    assert "empty.tif: no valid pixel" in printed.err
    assert "3 of 4 files failed" in printed.err


def test_existing_maps_are_refused_before_anything_is_loaded_or_computed(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(picture(40, 40)).save(tmp_path / "a.jpg")
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "a.png").write_text("precious")
    shutil.copytree(bundle, tmp_path / "bundle")
    (tmp_path / "bundle" / "weights.safetensors").write_bytes(b"")  # nobody gets that far
    assert main(["predict", str(tmp_path / "bundle"), str(tmp_path / "a.jpg"), "--out", str(tmp_path / "maps")]) == 1
    assert "a.png: exists already" in capsys.readouterr().err
    assert (tmp_path / "maps" / "a.png").read_text() == "precious"


def test_inputs_are_never_overwritten_and_outputs_never_share_a_name(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        Image.fromarray(picture(40, 40)).save(tmp_path / folder / "a.png")
    both = [str(tmp_path / "x"), str(tmp_path / "y")]
    assert main(["predict", str(bundle), *both, "--out", str(tmp_path / "maps")]) == 1
    assert "would be drawn to it; predict them separately" in capsys.readouterr().err
    assert main(["predict", str(bundle), both[0], "--out", both[0], "--overwrite"]) == 1
    assert "a.png: is an input itself and would be overwritten" in capsys.readouterr().err
    assert main(["predict", str(bundle), str(tmp_path / "gone"), "--out", str(tmp_path / "maps")]) == 1
    assert "gone: no such file or folder" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["index", "colour"])
def test_evaluating_a_bundle_on_its_own_predictions_gives_full_marks(
    bundle: Path, model: Segmentor, tmp_path: Path, capsys: pytest.CaptureFixture[str], encoding: str
) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for seed, size in enumerate([(70, 90), (40, 64)]):
        image = picture(*size, seed=seed)
        Image.fromarray(image).save(tmp_path / "images" / f"{seed}.png")
        labels = by_hand(model, image)
        labels[:5] = 255
        colors = np.array([*LABELS.colors, *[(0, 0, 0)] * 253], np.uint8)
        truth = labels if encoding == "index" else colors[np.where(labels == 255, 0, labels)]
        Image.fromarray(truth).save(tmp_path / "masks" / f"{seed}.png")
    words = ["evaluate", bundle, "--images", tmp_path / "images", "--masks", tmp_path / "masks"]
    assert main([*map(str, words), "--json", str(tmp_path / "scores.json")]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    full = 70 * 90 + 40 * 64
    assert scores["pixels"] == (full - 5 * (90 + 64) if encoding == "index" else full)
    # In colour masks the first rows are roof, whatever was predicted there.
    assert scores["accuracy"] > (0.999 if encoding == "index" else 1 - 5 * (90 + 64) / full - 0.001)
    assert scores["images"] == 2
    assert [c["name"] for c in scores["classes"]] == list(LABELS.names)
    assert "mean Dice" in capsys.readouterr().out


def masks_of_two_pixels(folder: Path, values: list[list[int]]) -> Path:
    folder.mkdir()
    for number, row in enumerate(values):
        Image.fromarray(np.array([row], np.uint8)).save(folder / f"{number}.png")
    return folder


def test_predicted_masks_are_scored_against_true_ones_by_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predicted = masks_of_two_pixels(tmp_path / "pred", [[0, 1, 1], [1, 255, 0]])
    true = masks_of_two_pixels(tmp_path / "true", [[10, 10, 30], [30, 30, 255]])
    (tmp_path / "classes.yaml").write_text(
        yaml.safe_dump([{"name": "roof", "ids": [10]}, {"name": "road", "ids": [30]}])
    )
    words = ["evaluate", "--pred", predicted, "--masks", true, "--classes", tmp_path / "classes.yaml"]
    assert main([*map(str, words), "--json", str(tmp_path / "s.json")]) == 0
    scores = json.loads((tmp_path / "s.json").read_text())
    # roof: TP 1, FN 1; road: TP 2, FP 1, FN 1 (the pixel without a prediction)
    assert scores["classes"][0]["dice"] == pytest.approx(2 / 3)
    assert scores["classes"][1]["dice"] == pytest.approx(4 / 6)
    assert scores["accuracy"] == pytest.approx(3 / 5)
    assert "0.667" in capsys.readouterr().out


def test_masks_that_do_not_belong_together_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "classes.yaml").write_text("[roof, road]")
    words = ["evaluate", "--classes", str(tmp_path / "classes.yaml"), "--masks"]

    def refusal(true: Path, predicted: Path) -> str:
        assert main([*words, str(true), "--pred", str(predicted)]) == 1
        return capsys.readouterr().err

    true = masks_of_two_pixels(tmp_path / "true", [[0, 1], [0, 1]])
    short = masks_of_two_pixels(tmp_path / "short", [[0, 1]])
    wide = masks_of_two_pixels(tmp_path / "wide", [[0, 1, 1], [0, 1, 1]])
    stray = masks_of_two_pixels(tmp_path / "stray", [[0, 7], [0, 1]])
    assert "1 of 2 masks in" in refusal(true, short)
    assert "0.png: 1 x 2 px (H x W), but" in refusal(true, wide)
    assert "0.png: has 7, but there are 2 classes" in refusal(true, stray)


def test_a_bundle_of_other_classes_and_half_given_folders_are_refused(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "classes.yaml").write_text("[roof, road, water]")
    images = masks_of_two_pixels(tmp_path / "m", [[0, 1]])
    words = ["evaluate", bundle, "--images", images, "--masks", images, "--classes", tmp_path / "classes.yaml"]
    assert main([*map(str, words)]) == 1
    assert "trained on the classes roof, road, tree, but the data has roof, road, water" in capsys.readouterr().err
    assert main(["evaluate", str(bundle), "--images", str(images)]) == 1
    assert "give either --images DIR and --masks DIR, or --config YAML" in capsys.readouterr().err
    assert main(["evaluate", "--pred", str(images)]) == 1
    assert "give a BUNDLE, or --pred DIR and --masks DIR with --classes" in capsys.readouterr().err


def test_a_checkpoint_is_exported_and_described(
    model: Segmentor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = {
        "recipe": model.recipe, "spec": model.spec.to_dict(), "labels": LABELS.to_dict(), "tile": 64,
        "metrics": {"mean_dice": 0.75},
    }  # fmt: skip
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state, "visionapps": head}, tmp_path / "best.ckpt")
    words = ["export", str(tmp_path / "best.ckpt"), "--out", str(tmp_path / "b")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "unet on resnet10t" in printed
    assert "0.750" in printed
    assert "3: roof, road, tree" in printed
    assert main(words) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
