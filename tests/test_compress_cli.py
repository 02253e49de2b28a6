"""visionapps compress, end to end: small bundles of a run, their tables, retraining under rules, exits and gates."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import WeightAveraging

from visionapps.cli.main import main
from visionapps.compression.adaptive import exit_confidence, exit_costs, multiply_adds, set_exit_budget, with_gates
from visionapps.compression.layers import weight_layers
from visionapps.data.class_dataset import ClassDataset, ClassPhoto
from visionapps.data.class_doctor import examine_classes
from visionapps.data.fake_classes import write_classes
from visionapps.errors import ConfigError
from visionapps.inference.bundle import Bundle, load
from visionapps.models import classifier
from visionapps.structures import Frame, LabelSpace
from visionapps.training.retrain import retrain
from visionapps.training.sparse import Sparsify

CONFIG = """
seed_everything: 0
trainer:
  {max_epochs: 1, check_val_every_n_epoch: 2, enable_model_summary: false, accelerator: cpu, enable_progress_bar: false}
model:
  class_path: visionapps.training.classification.ClassificationTask
  init_args:
    model: {class_path: visionapps.models.classifier, init_args: {network: visionapps/resnet20, num_classes: 3}}
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.05, momentum: 0.9}}
data:
  class_path: visionapps.training.class_data.ClassificationData
  init_args:
    dataset: {train: HERE/train, val: HERE/val, cache: HERE/cache}
    view: {side: 16}
    batch_size: 15
    workers: 0
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("compress")
    rng = np.random.default_rng(0)
    write_classes(here / "train", 10, side=16, classes=3, rng=rng)
    write_classes(here / "val", 6, side=16, classes=3, rng=rng)
    text = CONFIG.replace("HERE", here.as_posix())
    (here / "run.yaml").write_text(text)
    return here


@pytest.fixture(scope="module")
def photos(place: Path) -> tuple[ClassPhoto, ...]:
    dataset = ClassDataset(str(place / "train"), str(place / "val"), cache=str(place / "cache"))
    return examine_classes(dataset).val


def bundle_of(network: str) -> Bundle:
    torch.manual_seed(0)
    model = classifier(network, 3)
    model.train()
    with torch.no_grad():
        model(torch.rand(8, 3, 16, 16) * 255)
    return Bundle(model.eval(), LabelSpace.named(["checks", "columns", "rows"]), 16, frame=Frame(16, 1.0))


def test_a_run_is_compressed_retrained_and_weighed(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = []

    def seen(*args: Any, **named: Any) -> float | None:
        scores.append(retrain(*args, **named))
        return scores[-1]

    monkeypatch.setattr("visionapps.training.retrain.retrain", seen)
    bundle_of("visionapps/resnet20").save(place / "whole")
    words = ["compress", str(place / "whole"), "--out", str(place / "small"), "--config", str(place / "run.yaml")]
    words += ["--prune", "0.8", "--share", "4", "--retrain-epochs", "1", "--json", str(place / "t.json")]
    assert main(words) == 0
    assert len(scores) == 2
    assert None not in scores  # one epoch each, and each was validated, though the run validates every other epoch
    table = capsys.readouterr().out
    for line in ("weights on disk", "Huffman-coded", "zeros among weights", "top-1", "multiply-adds per photo"):
        assert line in table
    found = json.loads((place / "t.json").read_text())
    assert found["after"]["zeros"] == pytest.approx(0.8, abs=1e-4)
    assert found["after"]["values"] <= 16
    assert found["before"]["file_bytes"] > 8 * found["after"]["file_bytes"]
    assert found["after"]["file_bytes"] == (place / "small" / "weights.safetensors").stat().st_size
    assert found["before"]["score"]["multiply_adds"] == found["after"]["score"]["multiply_adds"]
    whole, small = (load(place / name).model for name in ("whole", "small"))
    norms = [
        (a, b)
        for a, b in zip(whole.modules(), small.modules(), strict=True)
        if isinstance(a, torch.nn.BatchNorm2d) and isinstance(b, torch.nn.BatchNorm2d)
    ]
    assert len(norms) == 19
    for a, b in norms:  # retraining reached every layer, and its statistics
        assert not torch.equal(a.bias, b.bias)
        assert not torch.equal(torch.as_tensor(a.running_mean), torch.as_tensor(b.running_mean))
    for module in weight_layers(small).values():
        assert len(module.weight[module.weight != 0].unique()) <= 16


def test_what_cannot_be_asked_for_says_why(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle_of("visionapps/resnet20").save(place / "b")
    bundle, out, config = str(place / "b"), str(place / "o"), str(place / "run.yaml")
    for words, message in (
        ([], "nothing to do"),
        (["--ternary", "--share", "3"], "give them without --prune, --share"),
        (["--share-linear", "3"], "give --share BITS of the other layers, too"),
        (["--ternary"], "few values are learnt; give the run's --config YAML and --retrain-epochs N"),
        (["--xnor", "--config", config], "few values are learnt; give the run's"),
        (["--share", "3", "--per-layer"], "--per-layer: says how weights are pruned; give --prune SHARE"),
        (["--prune", "2"], "sparsity 2 must lie between 0 and 1"),
        (["--prune", "0.5", "--retrain-epochs", "2"], "and the run's --config YAML"),
        (["--exit-budget", "0.5"], "need photos; give the run's --config YAML"),
        (["--exit-budget", "0.5", "--config", config], "the network has one exit only"),
        (["--gates", "0.5", "--config", config], "gates are learnt; give --retrain-epochs N"),
    ):
        assert main(["compress", bundle, "--out", out, *words]) == 1, words
        assert message in capsys.readouterr().err
    assert main(["compress", bundle, "--out", bundle, "--overwrite", "--share", "3"]) == 1
    assert "is the bundle itself" in capsys.readouterr().err
    assert not (place / "o").exists()


def test_exits_meet_their_budget_in_multiply_adds_that_are_counted_and_travel_in_the_bundle(
    photos: tuple[ClassPhoto, ...], tmp_path: Path
) -> None:
    bundle = replace(bundle_of("visionapps/msdnet"), card={"metrics": {"top1": 0.7}})
    costs = exit_costs(bundle)
    assert costs == sorted(costs)
    assert 0.65 * costs[-1] < multiply_adds(bundle, photos[:2]) < costs[-1]  # asked for the last exit alone
    for share in (0.3, 0.6):
        cheap = set_exit_budget(bundle, photos, share)
        cheap.save(tmp_path / str(share))
        again = load(tmp_path / str(share))
        spent = multiply_adds(again, photos) / costs[-1]
        assert 0.5 * share < spent <= share + 1e-6
        assert (again.card.get("metrics"), again.card["metrics_before"]) == (None, {"top1": 0.7})
        assert f"exits at a budget of {share:.0%}" in again.card["compression"][0]
    assert exit_confidence(bundle, photos).shape == (7, len(photos))
    with pytest.raises(ConfigError, match=r"0.01 of the whole cost cannot be met, .*; give at least 0\.\d+$"):
        set_exit_budget(bundle, photos, 0.01)
    with pytest.raises(ConfigError, match="give a share in"):
        set_exit_budget(bundle, photos, 1.5)


def test_gates_begin_from_the_trained_network(photos: tuple[ClassPhoto, ...]) -> None:
    bundle = replace(bundle_of("visionapps/resnet20"), card={"metrics": {"top1": 0.7}})
    gated = with_gates(bundle, 0.5)
    assert gated.card["metrics_before"] == {"top1": 0.7}
    assert "metrics" not in gated.card
    assert gated.model.recipe is not None
    assert gated.model.recipe["arguments"]["network"] == "visionapps/convnet_aig_20"
    assert gated.classifier.network.target == 0.5
    image = torch.rand(2, 3, 16, 16) * 255
    with torch.no_grad():  # new gates let everything pass
        assert torch.allclose(gated.model.eval()(image), bundle.model(image))
    with pytest.raises(ConfigError, match="gates: the bundle holds visionapps/msdnet"):
        with_gates(bundle_of("visionapps/msdnet"), 0.5)


def test_zeros_grow_over_the_epochs_of_a_run_and_averages_are_refused() -> None:
    torch.manual_seed(0)
    pruning = Sparsify(0.9, 1, end=3)
    assert [round(pruning.share(e), 4) for e in range(6)] == [
        0, *(round(0.9 * (1 - (1 - t) ** 3), 4) for t in (1 / 3, 2 / 3, 1)), 0.9, 0.9,
    ]  # fmt: skip

    class Held(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = torch.nn.Linear(10, 10)

    task = Held()
    optimizer = torch.optim.SGD(task.parameters(), 0.1, momentum=0.9)
    for epoch in range(5):
        trainer: Any = SimpleNamespace(current_epoch=epoch, callbacks=[WeightAveraging()])
        pruning.on_train_epoch_start(trainer, task)  # type: ignore[arg-type]
        for _ in range(3):
            optimizer.zero_grad()
            task.model(torch.randn(4, 10)).square().sum().backward()
            optimizer.step()
            pruning.on_train_batch_end(trainer, task)  # type: ignore[arg-type]
        zeros = int((task.model.weight == 0).sum())
        assert zeros == round(100 * pruning.share(trainer.current_epoch))
    assert zeros == 90
    with pytest.raises(ConfigError, match="averages of weights remember what was before the zeros"):
        pruning.on_fit_start(trainer, task)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="begin 3 and end 2"):
        Sparsify(0.5, 3, end=2)
