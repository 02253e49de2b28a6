"""Checkpoints for averages and ensembles, from one short run each, and the verb that makes use of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from visionapps.cli.main import main
from visionapps.competition.ensemble import EnsembleSpec
from visionapps.data.fake import PhotoFolders, write_photos
from visionapps.errors import ConfigError
from visionapps.inference.bundle import from_checkpoint, load
from visionapps.training.optim import CosineRestarts
from visionapps.training.snapshots import KeepBest, LateAveraging

SNAPSHOTS = "visionapps.training.snapshots"
CURVES = "visionapps.training.optim"


def settings(folders: PhotoFolders, cache: Path, callbacks: list[dict], curve: dict, epochs: int) -> dict:
    return {
        "seed_everything": 1,
        "trainer": {
            "max_epochs": epochs,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": callbacks,
        },
        "model": {
            "class_path": "visionapps.training.segmentation.SegmentationTask",
            "init_args": {
                "model": {
                    "class_path": "visionapps.models.unet",
                    "init_args": {"backbone": "test_efficientnet", "num_classes": 3, "channels": [8, 8, 8, 8, 8]},
                },
                "loss": {"class_path": "visionapps.losses.DiceCrossEntropy"},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
                "curve": curve,
            },
        },
        "data": {
            "class_path": "visionapps.training.data.SegmentationData",
            "init_args": {
                "dataset": {
                    "images": str(folders.images),
                    "masks": str(folders.masks),
                    "classes": [{"name": f"class{k}"} for k in range(3)],
                    "split": {"group": "site\\d+", "val_fraction": 0.3},
                    "policies": {"near_duplicate": "warn"},
                    "cache": str(cache),
                },
                "crops": {"size": 32, "per_epoch": 8},
                "batch_size": 4,
                "workers": 0,
                "val_tile": 64,
            },
        },
    }


def train(home: Path, folders: PhotoFolders, callbacks: list[dict], curve: dict, epochs: int = 4) -> int:
    (home / "run.yaml").write_text(yaml.safe_dump(settings(folders, home / "cache", callbacks, curve, epochs)))
    return main(["fit", "--config", str(home / "run.yaml"), "--out", str(home / "out"), "--no-report"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> PhotoFolders:
    return write_photos(tmp_path_factory.mktemp("photos"), 8, rng=np.random.default_rng(0))


@pytest.fixture(scope="module")
def cycles(folders: PhotoFolders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two cycles that keeps its two best checkpoints."""
    home = tmp_path_factory.mktemp("cycles")
    callbacks = [
        {"class_path": f"{SNAPSHOTS}.KeepBest", "init_args": {"count": 2}},
        {"class_path": f"{SNAPSHOTS}.Snapshots"},
    ]
    assert train(home, folders, callbacks, {"class_path": f"{CURVES}.CosineRestarts", "init_args": {"cycles": 2}}) == 0
    return home


def scores_of(home: Path) -> list[float]:
    """The validation score of each epoch."""
    lines = (home / "out/logs/start_000/metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("val/dice")
    return [float(line.split(",")[column]) for line in lines[1:] if line.split(",")[column]]


def test_a_rate_with_restarts_falls_in_each_cycle_from_one():
    curve = CosineRestarts(4, final=0.1)
    for cycle in range(4):  # by hand: begin, middle and end of a cosine from 1 to 0.1
        begin = cycle / 4
        assert curve.factor(begin) == pytest.approx(1)
        assert curve.factor(begin + 1 / 8) == pytest.approx(0.55)
        assert curve.factor(begin + 1 / 4 - 1e-9) == pytest.approx(0.1)
    assert curve.factor(1.0) == pytest.approx(0.1)
    warm = CosineRestarts(2, warmup=0.1)
    assert [warm.factor(x) for x in (0.05, 0.1, 0.3, 0.5, 0.75)] == pytest.approx([0.5, 1, 0.5, 1, 0.5])
    with pytest.raises(ConfigError, match=r"2 cycles and warmup 0\.5; give 2 cycles at least"):
        CosineRestarts(2, warmup=0.5)


def test_the_best_checkpoints_and_the_ends_of_cycles_are_kept(cycles: Path):
    kept = sorted(path.name for path in (cycles / "out/checkpoints").iterdir())
    scores = scores_of(cycles)
    best = sorted(sorted(range(4), key=lambda epoch: -scores[epoch])[:2])
    assert kept == ["best.ckpt", "cycle_1.ckpt", "cycle_2.ckpt", "last.ckpt", *(f"top_{e:03d}.ckpt" for e in best)]
    for number, epoch in ((1, 1), (2, 3)):
        card = from_checkpoint(cycles / f"out/checkpoints/cycle_{number}.ckpt").card
        assert card["epoch"] == epoch
        assert card["metrics"]["mean_dice"] == pytest.approx(scores[epoch], abs=1e-6)
    last, end = (
        torch.load(cycles / f"out/checkpoints/{n}.ckpt", weights_only=True)["state_dict"] for n in ("last", "cycle_2")
    )
    assert all(torch.equal(value, end[name]) for name, value in last.items())


def test_the_verb_averages_checkpoints_and_takes_statistics_from_the_runs_photos(cycles: Path, capsys):
    made, plain = cycles / "made", cycles / "plain"
    tops = [str(path) for path in sorted((cycles / "out/checkpoints").glob("top_*.ckpt"))]
    words = ["--config", str(cycles / "run.yaml"), "--crops", "6", "--device", "cpu"]
    assert main(["ensemble", "average", *tops, *words, "--out", str(made)]) == 0
    assert "mean of weights" in capsys.readouterr().out
    assert main(["ensemble", "average", *tops, "--out", str(plain)]) == 0
    assert "--config YAML takes new ones from photos" in capsys.readouterr().out
    one, other = load(made), load(plain)
    differ = {n for n, v in one.model.state_dict().items() if not torch.equal(v, other.model.state_dict()[n])}
    assert differ
    assert all(name.endswith(("running_mean", "running_var")) for name in differ)
    assert one.card["statistics_from_crops"] == 6
    assert [part["share"] for part in one.card["averaged"]] == [0.5, 0.5]
    assert 0 <= one.card["metrics"]["mean_dice"] <= 1

    assert main(["ensemble", "average", *tops, *words, "--greedy", "--out", str(cycles / "greedy")]) == 0
    shown = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line.startswith(str(cycles))}
    best = max(float(row[0]) for row in rows.values())
    assert load(cycles / "greedy").card["metrics"]["mean_dice"] >= best - 1e-3  # three decimals are shown
    assert main(["ensemble", "average", *tops, "--greedy", "--out", str(cycles / "no")]) == 1
    assert "--greedy: needs --config YAML" in capsys.readouterr().err


def test_the_verb_writes_the_file_of_snapshot_members(cycles: Path, capsys):
    for number in (1, 2):
        from_checkpoint(cycles / f"out/checkpoints/cycle_{number}.ckpt").save(cycles / f"member_{number}")
    members = [str(cycles / "member_1"), str(cycles / "member_2")]
    out = cycles / "all.yaml"
    assert main(["ensemble", "make", *members, "--weights", "1,3", "--tta", "d4", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "2 members x 8 views: 16 forward passes per tile" in shown
    assert "75.0%" in shown
    spec = EnsembleSpec.load(out)
    assert (spec.weights, spec.flips, [b.name for b in spec.bundles]) == ((1, 3), "d4", ["member_1", "member_2"])
    assert main(["ensemble", "make", *members, "--out", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["ensemble", "make", *members, "--out", str(cycles / "all.txt")]) == 1
    assert "ends in .yaml, by which verbs know it" in capsys.readouterr().err


def test_the_late_mean_is_validated_and_saved_with_statistics_of_its_own(folders: PhotoFolders, tmp_path: Path):
    callbacks = [{"class_path": f"{SNAPSHOTS}.LateAveraging", "init_args": {"start": 0.5, "batches": 2}}]
    keep = {"class_path": f"{SNAPSHOTS}.KeepBest", "init_args": {"count": 9}}
    assert train(tmp_path, folders, [*callbacks, keep], {"class_path": f"{CURVES}.Curve"}) == 0
    found = [torch.load(tmp_path / f"out/checkpoints/top_{epoch:03d}.ckpt", weights_only=True) for epoch in range(4)]
    running = [checkpoint["current_model_state"] for checkpoint in found]
    means = [checkpoint["state_dict"] for checkpoint in found]
    weights = [n for n in means[0] if "running_" not in n and "tracked" not in n]
    moved = [n for n in means[0] if "running_" in n]
    for epoch in (0, 1):  # before the mean begins it is the model itself
        assert all(torch.equal(means[epoch][name], running[epoch][name]) for name in means[0])
    for name in weights:
        torch.testing.assert_close(means[2][name], running[2][name])
        torch.testing.assert_close(means[3][name], (running[2][name] + running[3][name]) / 2)
    assert any(not torch.equal(means[3][name], running[3][name]) for name in moved)
    assert not any(torch.equal(means[2][name], means[3][name]) for name in moved)
    assert int(found[3]["averaging_state"]["n_averaged"]) == 2


@pytest.mark.parametrize(
    ("callback", "curve", "said"),
    [
        ("Snapshots", {"class_path": f"{CURVES}.Cosine"}, "Snapshots: the learning rate has no cycles"),
        (
            "Snapshots",
            {"class_path": f"{CURVES}.CosineRestarts", "init_args": {"cycles": 3}},
            "max_epochs 4 is no multiple of the 3 cycles, so that they would end within an epoch; take 3",
        ),
    ],
)
def test_cycles_that_do_not_fit_the_run_are_refused(folders, tmp_path, capsys, callback, curve, said):
    assert train(tmp_path, folders, [{"class_path": f"{SNAPSHOTS}.{callback}"}], curve) == 1
    assert said in capsys.readouterr().err


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="KeepBest: count 0 must be at least 1"):
        KeepBest(0)
    with pytest.raises(ConfigError, match=r"LateAveraging: start 1 is a share of the run in \[0, 1\)"):
        LateAveraging(start=1)
    with pytest.raises(ConfigError, match="LateAveraging: batches 0 must be at least 1"):
        LateAveraging(batches=0)
