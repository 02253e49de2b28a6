"""The verb tune, and that predict and evaluate obey the rules that it saves with a bundle."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from visionapps.cli.main import main
from visionapps.competition.ensemble import EnsembleSpec, Member
from visionapps.competition.finishing import Finishing, read_rules
from visionapps.competition.oof import OofWriter
from visionapps.competition.postprocess import PostProcess, Rule
from visionapps.competition.predicting import to_levels
from visionapps.data.folding import plan_folds
from visionapps.data.folds import FoldItem
from visionapps.errors import ConfigError, DataError
from visionapps.inference.bundle import Bundle, description_of, load
from visionapps.inference.engine import Engine, Scene
from visionapps.inference.network import Network
from visionapps.inference.products import Products
from visionapps.inference.sources import ArraySource
from visionapps.inference.tiling import Tiling
from visionapps.models import unet
from visionapps.structures import LabelSpace

FIXED = ["--device", "cpu", "--precision", "fp32", "--tile", "64"]
LABELS = LabelSpace(("roof", "road", "tree"), ((200, 0, 0), (0, 100, 0), (0, 0, 50)))
SIZE = (70, 96)
# Of a network that has learnt nothing: its shares are all near a half.
RULES = PostProcess((Rule(threshold=0.55, bottom=0.52, min_area=30), Rule(), Rule(threshold=0.51, holes=60, keep=2)))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, a photo with a mask, and a store of four made-up photos in two folds."""
    home = tmp_path_factory.mktemp("tune")
    torch.manual_seed(4)
    model = unet("resnet10t", 3, channels=(8, 8, 8, 8, 8)).eval()
    Bundle(model, LABELS, 64).save(home / "bundle")
    rng = np.random.default_rng(0)
    for name in ("photos", "masks"):
        (home / name).mkdir()
    small = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(small).resize(SIZE[::-1], Image.Resampling.BICUBIC).save(home / "photos" / "x.png")
    Image.fromarray(rng.integers(0, 3, SIZE, dtype=np.uint8)).save(home / "masks" / "x.png")
    write_store(home / "oof", folds=(0, 1))
    return home


def write_store(folder: Path, folds: tuple[int, ...], labels: LabelSpace = LABELS) -> None:
    plan = plan_folds([FoldItem(f"p{n}", f"p{n}", (32, 32), (5, 5, 5), f"p{n}.png") for n in range(4)], 2)
    writer = OofWriter(folder, labels=labels, plan=plan)
    rng = np.random.default_rng(1)
    for number in folds:
        with writer.fold(number, {}) as fold:
            for name in plan.names(number):
                truth = np.kron(rng.integers(0, 3, (2, 2)), np.ones((16, 16), int)).astype(np.uint8)
                scores = rng.dirichlet((1, 1, 1), (32, 32)).transpose(2, 0, 1)
                scores += 0.8 * (truth == np.arange(3)[:, None, None])
                fold.write(name, scores / scores.sum(0), truth=truth)


def planes_of(home: Path) -> np.ndarray:
    """Planes of the photo, labels and probabilities, straight from the engine."""
    engine = Engine(
        Network([load(home / "bundle").segmentor], device="cpu", precision="fp32"),
        products=Products(("confidence", "probabilities")),
    )
    image = np.moveaxis(np.asarray(Image.open(home / "photos" / "x.png")), -1, 0)
    plan = Tiling(64).plan(SIZE, engine.network)
    scene = Scene(ArraySource(image), plan, range(len(plan.rows.starts)))
    return np.concatenate([outcome.planes for _, outcome in engine.run([scene])], 1)


def rules_file(path: Path, process: PostProcess) -> Path:
    path.write_text(yaml.safe_dump({"postprocess": process.to_dict(LABELS.names)}))
    return path


def drawn(home: Path, folder: Path, *options: str) -> np.ndarray:
    bundle = home / "bundle"
    assert main(["predict", str(bundle), str(home / "photos"), "--out", str(folder), *FIXED, *options]) == 0
    return np.asarray(Image.open(folder / "x.png"))


def test_tune_writes_rules_and_says_what_they_are_worth(home, tmp_path, capsys):
    out, bundle = tmp_path / "tuned.yaml", tmp_path / "bundle"
    load(home / "bundle").save(bundle)
    command = ["tune", str(home / "oof"), "--metric", "dice_per_image", "--empty", "one", "--rules"]
    assert main([*command, "threshold,min_area,holes", "--out", str(out), "--into", str(bundle)]) == 0
    text = capsys.readouterr().out
    assert "expected of new photos" in text
    assert "folds, with rules tuned on the others: 0: " in text
    plain = yaml.safe_load(out.read_text())
    assert plain["metric"] == {"name": "dice_per_image"}
    assert plain["scores"]["after"]["score"] > plain["scores"]["before"]["score"]
    assert read_rules(out, LABELS).rules != PostProcess.none(3).rules
    saved = load(bundle)
    assert saved.postprocess == plain["postprocess"]
    assert saved.card["tuned"]["scores"] == plain["scores"]
    assert main([*command, "threshold", "--into", str(bundle)]) == 1
    assert "has rules already; replace them with --overwrite" in capsys.readouterr().err


def test_predict_draws_what_the_rules_make_of_the_scores(home, tmp_path):
    planes = planes_of(home)
    expected = RULES.apply(to_levels(planes[2:], planes[0]))
    assert (expected != planes[0]).sum() > 50  # the rules change something here
    file = rules_file(tmp_path / "rules.yaml", RULES)
    labels = drawn(home, tmp_path / "maps", "--postprocess", str(file))
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(drawn(home, tmp_path / "plain"), planes[0])
    no_rule = rules_file(tmp_path / "no.yaml", PostProcess.none(3))
    np.testing.assert_array_equal(drawn(home, tmp_path / "no", "--postprocess", str(no_rule)), planes[0])


def test_thresholds_alone_are_obeyed_band_by_band(home, tmp_path):
    process = PostProcess((Rule(threshold=0.53), Rule(), Rule(threshold=0.515)))
    assert not Finishing(process, LABELS).whole
    planes = planes_of(home)
    file = rules_file(tmp_path / "rules.yaml", process)
    labels = drawn(home, tmp_path / "maps", "--postprocess", str(file))
    np.testing.assert_array_equal(labels, process.apply(to_levels(planes[2:], planes[0])))
    assert (labels != planes[0]).sum() > 50


def test_a_bundle_keeps_its_rules_and_none_leaves_them_out(home, tmp_path):
    bundle = replace(load(home / "bundle"), postprocess=RULES.to_dict(LABELS.names))
    bundle.save(tmp_path / "home" / "bundle")
    (tmp_path / "home" / "photos").symlink_to(home / "photos")
    planes = planes_of(home)
    with_rules = drawn(tmp_path / "home", tmp_path / "with")
    np.testing.assert_array_equal(with_rules, RULES.apply(to_levels(planes[2:], planes[0])))
    np.testing.assert_array_equal(drawn(tmp_path / "home", tmp_path / "without", "--postprocess", "none"), planes[0])
    arguments = [str(tmp_path / "home" / "bundle"), "--images", str(home / "photos"), "--masks", str(home / "masks")]
    scores = []
    for name, options in (("a", []), ("b", ["--postprocess", "none"])):
        out = tmp_path / f"{name}.json"
        assert main(["evaluate", *arguments, *FIXED, *options, "--json", str(out)]) == 0
        scores.append(json.loads(out.read_text())["accuracy"])
    truth = np.asarray(Image.open(home / "masks" / "x.png"))
    assert scores == pytest.approx([(with_rules == truth).mean(), (planes[0] == truth).mean()])


def test_a_bundle_with_rules_has_a_format_that_readers_without_rules_refuse(home, tmp_path):
    bundle = load(home / "bundle")
    for number, packed, rules in ((1, False, None), (2, True, None), (3, False, RULES), (4, True, RULES)):
        plain = None if rules is None else rules.to_dict(LABELS.names)
        replace(bundle, packed=packed, postprocess=plain).save(tmp_path / str(number))
        assert description_of(tmp_path / str(number))["format"] == number  # others read 1, or 1 and 2
        saved = load(tmp_path / str(number))
        assert (saved.packed, saved.postprocess) == (packed, plain)
        for name, tensor in bundle.model.state_dict().items():
            assert torch.equal(saved.model.state_dict()[name], tensor)


def test_an_ensemble_keeps_its_own_rules_and_predict_and_evaluate_obey_them(home, tmp_path, capsys):
    members = tuple(Member(tmp_path / name) for name in ("a", "b"))
    for member in members:  # two of a kind, whose mean is that of one; their own rules must not count
        no_roads = PostProcess((Rule(), Rule(threshold=1.0), Rule()))
        replace(load(home / "bundle"), postprocess=no_roads.to_dict(LABELS.names)).save(member.bundle)
    planes, file = planes_of(home), rules_file(tmp_path / "rules.yaml", RULES)
    plain, wanted = RULES.to_dict(LABELS.names), RULES.apply(to_levels(planes[2:], planes[0]))
    for name, rules, expected in (("inline", plain, wanted), ("file", file, wanted), ("none", None, planes[0])):
        spec = tmp_path / f"{name}.yaml"
        EnsembleSpec(members, postprocess=rules).save(spec)
        read = EnsembleSpec.load(spec)
        assert read.rules(LABELS, spec) == (RULES if rules else None)
        out = tmp_path / f"maps_{name}"
        assert main(["predict", str(spec), str(home / "photos"), "--out", str(out), *FIXED]) == 0
        np.testing.assert_array_equal(np.asarray(Image.open(out / "x.png")), expected)
    assert yaml.safe_load((tmp_path / "file.yaml").read_text())["postprocess"] == "rules.yaml"  # moves with its files
    photos = ["--images", str(home / "photos"), "--masks", str(home / "masks"), *FIXED]
    assert main(["evaluate", str(tmp_path / "inline.yaml"), *photos, "--json", str(tmp_path / "scores.json")]) == 0
    truth = np.asarray(Image.open(home / "masks" / "x.png"))
    assert json.loads((tmp_path / "scores.json").read_text())["accuracy"] == pytest.approx((wanted == truth).mean())


def test_tune_writes_rules_into_the_file_of_an_ensemble(home, tmp_path, capsys):
    load(home / "bundle").save(tmp_path / "bundle")
    spec = tmp_path / "all.yaml"
    EnsembleSpec((Member(tmp_path / "bundle"),), flips="d4", fitted={"method": "equal"}).save(spec)
    command = ["tune", str(home / "oof"), "--rules", "threshold", "--into", str(spec)]
    assert main([*command, "--out", str(tmp_path / "tuned.yaml")]) == 0
    tuned, found = yaml.safe_load((tmp_path / "tuned.yaml").read_text()), EnsembleSpec.load(spec)
    assert found.postprocess == tuned["postprocess"]
    assert (found.flips, found.fitted["method"], found.fitted["tuned"]["scores"]) == ("d4", "equal", tuned["scores"])
    assert found.bundles[0].samefile(tmp_path / "bundle")
    assert main(command) == 1
    assert f"{spec}: has rules already; replace them with --overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0


def test_rules_of_an_ensemble_that_are_not_for_its_classes_are_refused_with_the_names(home, tmp_path, capsys):
    load(home / "bundle").save(tmp_path / "bundle")
    spec = tmp_path / "all.yaml"
    plain = {"members": ["bundle"], "postprocess": {"rules": {"rof": {"min_area": 9}}}}
    spec.write_text(yaml.safe_dump(plain))
    assert main(["predict", str(spec), str(home / "photos"), "--out", str(tmp_path / "maps"), *FIXED]) == 1
    text = capsys.readouterr().err
    assert f"{spec}: post-processing: no class 'rof'; there are roof, road, tree" in text
    for wrong, message in (
        ([1], "postprocess .1.: expected rules, "),
        ("gone.yaml", "gone.yaml: cannot be read"),
    ):
        spec.write_text(yaml.safe_dump(plain | {"postprocess": wrong}))
        with pytest.raises(ConfigError, match=message):
            EnsembleSpec.load(spec).rules(LABELS, spec)


def test_the_confidence_is_that_of_the_label_that_is_drawn(home):
    planes = planes_of(home)
    finish = Finishing(RULES, LABELS, Products(("confidence",)))
    from visionapps.inference.products import Band
    from visionapps.windows import Window

    labels, confidence = finish(Band(Window(0, 0, *SIZE), planes)).planes
    np.testing.assert_array_equal(confidence, np.take_along_axis(planes[2:], labels[None].astype(int), 0)[0])


def test_a_raster_too_large_for_rules_on_components_is_refused_and_thresholds_are_not():
    with pytest.raises(DataError, match=r"big.tif: 90000 x 90000 px of 3 classes are 30.2 GiB of scores"):
        Finishing(RULES, LABELS).require_room("big.tif", (90000, 90000))
    Finishing(PostProcess((Rule(0.6),) * 3), LABELS).require_room("big.tif", (90000, 90000))


def test_a_store_without_a_fold_and_options_that_do_not_fit_are_refused(home, tmp_path, capsys):
    write_store(tmp_path / "half", folds=(1,))
    out = ["--out", str(tmp_path / "x.yaml")]
    for arguments, text in (
        ([str(tmp_path / "half"), *out], "1 of 2 folds are missing (0)"),
        ([str(home / "oof")], "give --out FILE for the rules, or --into BUNDLE"),
        ([str(home / "oof"), "--out", str(tmp_path), "--overwrite"], "is a folder, but the rules are a file; give a"),
        ([str(home / "oof"), *out, "--rules", "erode"], "rules: erode unknown"),
        ([str(home / "oof"), *out, "--seed", "-1"], "seed -1: must be a whole number from 0 on"),
        ([str(home / "oof"), *out, "--metric", "dise_per_image"], "did you mean dice_per_image?"),
        ([str(home / "oof"), *out, "--background", "sea"], "--background sea: no such class; there are roof, road"),
    ):
        assert main(["tune", *arguments]) == 1
        assert text in capsys.readouterr().err
    assert not (tmp_path / "x.yaml").exists()


def test_the_background_is_a_class_that_is_called_so_and_help_says_how(home, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["tune", "--help"])
    told = "".join(capsys.readouterr().out.split())
    for names, background in ((("road", "Nothing", "tree"), "Nothing"), (("road", "tree", "other"), None)):
        store, out = tmp_path / names[-1], tmp_path / f"{names[-1]}.yaml"
        write_store(store, (0, 1), LabelSpace.named(list(names)))
        assert main(["tune", str(store), "--rules", "threshold", "--out", str(out)]) == 0
        assert yaml.safe_load(out.read_text())["postprocess"]["background"] == background
        assert background is None or background.lower() in told


def test_rules_of_other_classes_are_refused(home, tmp_path, capsys):
    (tmp_path / "rules.yaml").write_text("postprocess: {rules: {house: {min_area: 3}}}")
    command = ["predict", str(home / "bundle"), str(home / "photos"), "--out", str(tmp_path / "maps"), *FIXED]
    assert main([*command, "--postprocess", str(tmp_path / "rules.yaml")]) == 1
    assert "no class 'house'; there are roof, road, tree" in capsys.readouterr().err
