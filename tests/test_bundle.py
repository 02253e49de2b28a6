"""Bundles: what is saved comes back, and every defect is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from visionapps import __version__
from visionapps.detection.base import Detector, Limits
from visionapps.errors import OutputError, WeightsError
from visionapps.inference.bundle import Bundle, from_checkpoint, load
from visionapps.models import build, faster_rcnn, unet
from visionapps.models.detection import Features, Regions
from visionapps.segmentation.base import Segmentor
from visionapps.structures import InputSpec, LabelSpace, Rescale

LABELS = LabelSpace.named(["roof", "road", "tree"])
SPEC = InputSpec(("red", "nir"), 1000.0, (0.1, 0.2), (0.3, 0.4))


@pytest.fixture(scope="module")
def model() -> Segmentor:
    torch.manual_seed(0)
    built = unet("resnet10t", 3, spec=SPEC, channels=(8, 8, 8, 8, 8))
    built.train()
    with torch.no_grad():
        built(torch.rand(2, 2, 64, 64) * 1000)  # running means that are not those of a new model
    return built.eval()


@pytest.fixture
def folder(tmp_path: Path, model: Segmentor) -> Path:
    Bundle(model, LABELS, 256, {"metrics": {"mean_dice": 0.5}}).save(tmp_path / "b")
    return tmp_path / "b"


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    head = yaml.safe_load((folder / "model.yaml").read_text())
    change(head)
    (folder / "model.yaml").write_text(yaml.safe_dump(head))


def test_a_loaded_bundle_computes_exactly_what_the_saved_one_did(folder: Path, model: Segmentor) -> None:
    bundle = load(folder)
    assert (bundle.spec, bundle.labels, bundle.tile) == (SPEC, LABELS, 256)
    assert bundle.card["metrics"] == {"mean_dice": 0.5}
    assert bundle.card["visionapps"] == __version__
    assert not bundle.model.training
    image = torch.randint(0, 1000, (1, 2, 40, 50), dtype=torch.int16)
    with torch.inference_mode():
        assert torch.equal(bundle.model(image), model(image))
    assert sorted(p.name for p in folder.iterdir()) == ["card.json", "model.yaml", "weights.safetensors"]
    head = yaml.safe_load((folder / "model.yaml").read_text())
    assert head["recipe"]["model"] == "unet"


def test_the_ground_resolution_travels_and_older_bundles_have_none(folder: Path, model: Segmentor) -> None:
    Bundle(model, LABELS, 256, gsd=0.3).save(folder, overwrite=True)
    assert load(folder).gsd == 0.3
    edit(folder, lambda head: head.pop("gsd"))
    assert load(folder).gsd is None
    for wrong in (0, -0.3, float("nan")):
        with pytest.raises(WeightsError, match=r"bundle: gsd .* must be positive, the metres of a pixel on the ground"):
            Bundle(model, LABELS, 256, gsd=wrong)


@pytest.mark.parametrize("name", ["model.yaml", "weights.safetensors", "card.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(WeightsError, match=f"{name} missing"):
        load(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.yaml", "a: [", "model.yaml: damaged"),
        ("model.yaml", "- 1", "model.yaml: holds list, expected a mapping"),
        ("model.yaml", "!!python/object/apply:os.getcwd []", "model.yaml: damaged .*could not determine a constructor"),
        ("card.json", "{", "card.json: damaged"),
        ("weights.safetensors", "abc", "weights.safetensors: damaged"),
    ],
)
def test_a_damaged_file_is_named(folder: Path, name: str, content: str, message: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(WeightsError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda head: head.update(format=9), f"bundle format 9, but visionapps {__version__} reads 1"),
        (lambda head: head.pop("labels"), "says nothing about labels"),
        (lambda head: head["recipe"].update(model="os.system"), "does not describe a model that can be built"),
        (lambda head: head["recipe"]["arguments"].update(depth=7), "does not describe a model that can be built"),
        (lambda head: head["spec"].update(scale=255.0), "the recipe builds a model for .*scale=1000.0"),
        (lambda head: head.update(labels=LabelSpace.named(["a", "b"]).to_dict()), "3 outputs, .* has 2 classes"),
        (lambda head: head.update(tile=0), "tile 0 must be at least 1 pixel"),
        (lambda head: head["recipe"]["arguments"].update(num_classes=4), "do not fit .* of another shape"),
    ],
)
def test_a_description_that_cannot_be_right_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit(folder, change)
    with pytest.raises(WeightsError, match=message):
        load(folder)


def test_wrong_tensors_are_counted_and_named(folder: Path) -> None:
    state = load_file(folder / "weights.safetensors")
    names = sorted(state)
    for name in names[:4]:
        del state[name]
    state["stranger"] = torch.zeros(1)
    save_file(state, folder / "weights.safetensors")
    with pytest.raises(WeightsError, match=r"4 missing \(.*, \.\.\.\); 1 unknown \(stranger\)"):
        load(folder)


def test_an_existing_bundle_is_replaced_only_on_demand_and_a_foreign_folder_never(
    folder: Path, model: Segmentor, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match="exists already"):
        Bundle(model, LABELS, 256).save(folder)
    Bundle(model, LABELS, 512).save(folder, overwrite=True)
    assert load(folder).tile == 512
    (tmp_path / "thesis.txt").write_text("ten years of work")
    with pytest.raises(OutputError, match=r"holds other files and no model.yaml, so it is not replaced"):
        Bundle(model, LABELS, 256).save(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


def test_a_bundle_that_makes_no_sense_cannot_be_made(model: Segmentor, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="the model has 3 outputs, but the label space has 2 classes"):
        Bundle(model, LabelSpace.named(["a", "b"]), 256)
    with pytest.raises(WeightsError, match="no such bundle"):
        load(tmp_path / "nowhere")
    nameless = build(model.recipe or {})
    nameless.recipe = None
    with pytest.raises(WeightsError, match="without a recipe cannot be bundled"):
        Bundle(nameless, LABELS, 256).save(tmp_path / "n")


def checkpoint_of(model: Segmentor, **more: object) -> dict[str, object]:
    return {
        "epoch": 3,
        "global_step": 40,
        "state_dict": {f"model.{k}": v for k, v in model.state_dict().items()} | {"loss.weight": torch.ones(3)},
        "visionapps": {
            "recipe": model.recipe,
            "spec": model.spec.to_dict(),
            "labels": LABELS.to_dict(),
            "tile": 192,
            "metrics": {"mean_dice": 0.25},
        },
        **more,
    }


def test_a_checkpoint_becomes_a_bundle_with_its_metrics(model: Segmentor, tmp_path: Path) -> None:
    current = {name: torch.zeros_like(t) for name, t in model.state_dict().items()}
    torch.save(checkpoint_of(model, current_model_state=current), tmp_path / "last.ckpt")
    bundle = from_checkpoint(tmp_path / "last.ckpt")
    assert bundle.tile == 192
    assert bundle.card == {
        "checkpoint": "last.ckpt", "epoch": 3, "global_step": 40, "metrics": {"mean_dice": 0.25},
    }  # fmt: skip
    for name, tensor in model.state_dict().items():  # the averaged weights, not the current ones
        assert torch.equal(bundle.model.state_dict()[name], tensor), name


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('executed')",))


def test_foreign_harmful_and_damaged_checkpoints_are_refused(model: Segmentor, tmp_path: Path) -> None:
    path = tmp_path / "c.ckpt"
    with pytest.raises(WeightsError, match=r"c.ckpt: no such checkpoint"):
        from_checkpoint(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(WeightsError, match=r"c.ckpt: is no checkpoint of `visionapps fit`"):
        from_checkpoint(path)
    torch.save(checkpoint_of(model, harm=Harmful()), path)
    with pytest.raises(WeightsError, match=r"c.ckpt: cannot be read as a checkpoint of plain data and tensors"):
        from_checkpoint(path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"nonsense"):
        path.write_bytes(damaged)
        with pytest.raises(WeightsError, match=r"c.ckpt: cannot be read as a checkpoint"):
            from_checkpoint(path)


def detector() -> Detector:
    small = {"features": Features(strides=(8, 16), channels=8), "regions": Regions(hidden=8, size=3)}
    torch.manual_seed(0)
    return faster_rcnn("test_efficientnet", 3, **small).eval()


def test_a_detector_comes_back_with_its_scale_its_limits_and_the_numbers_of_its_classes(tmp_path: Path) -> None:
    model = detector()
    model.limits = Limits(score=0.01, nms=0.4, most=7)
    saved = Bundle(model, LABELS, 128, rescale=Rescale(64, 100), category_ids=(5, 1, 90))
    saved.save(tmp_path / "b")
    bundle = load(tmp_path / "b")
    assert bundle.rescale == Rescale(64, 100)
    assert bundle.category_ids == (5, 1, 90)
    assert bundle.detector.limits == Limits(score=0.01, nms=0.4, most=7)
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        found, again = model.detect(image, ((64, 64),))[0], bundle.detector.detect(image, ((64, 64),))[0]
    assert len(found.scores) == 7
    assert all(torch.equal(a, b) for a, b in zip(found[:3], again[:3], strict=True))


def test_a_bundle_is_asked_for_the_kind_that_it_holds(model: Segmentor) -> None:
    with pytest.raises(WeightsError, match="holds a detector, which draws boxes and no maps"):
        _ = Bundle(detector(), LABELS, 128).segmentor
    with pytest.raises(WeightsError, match="holds a segmentation model, which draws maps and no boxes"):
        _ = Bundle(model, LABELS, 128).detector


def test_numbers_of_classes_and_limits_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    for wrong in ((1, 2), (1, 2, 2)):
        with pytest.raises(WeightsError, match="must be one number for each of the 3 classes, all different"):
            Bundle(detector(), LABELS, 128, category_ids=wrong)
    Bundle(detector(), LABELS, 128).save(tmp_path / "b")
    edit(tmp_path / "b", lambda head: head["limits"].update(nms=3))
    with pytest.raises(WeightsError, match=r"does not describe a model that can be built: limits: .* nms 3 in"):
        load(tmp_path / "b")
