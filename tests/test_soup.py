"""Means of weights and statistics of batch normalisation, held against numbers that numpy makes."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from visionapps.cli.main import main
from visionapps.competition.soup import average, greedy_soup, normalisations, recompute_statistics
from visionapps.errors import ConfigError, WeightsError
from visionapps.inference.bundle import Bundle, load
from visionapps.models import unet
from visionapps.structures import LabelSpace

LABELS = LabelSpace.named(["roof", "road"])


def tiny(seed: int, **settings) -> Bundle:
    torch.manual_seed(seed)
    model = unet("test_efficientnet", 2, **({"channels": (8, 8, 8, 8, 8)} | settings)).eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.num_batches_tracked.fill_(10 + seed)
    return Bundle(model, LABELS, 64, {"metrics": {"mean_dice": 0.5}})


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    home = tmp_path_factory.mktemp("soup")
    for seed in range(3):
        tiny(seed).save(home / f"m{seed}")
    return [home / f"m{seed}" for seed in range(3)]


def test_every_weight_is_the_weighted_mean_and_counters_the_largest(bundles):
    mean = average(bundles, [1, 2, 5])
    parts = [load(path).model.state_dict() for path in bundles]
    for name, tensor in mean.model.state_dict().items():
        values = np.stack([part[name].numpy().astype(np.float64) for part in parts])
        if tensor.is_floating_point():
            expected = np.tensordot([1 / 8, 2 / 8, 5 / 8], values, 1)
            np.testing.assert_allclose(tensor.numpy(), expected.astype(np.float32), rtol=1e-6, atol=1e-12)
        else:
            assert int(tensor) == 12
    assert mean.card == {
        "averaged": [{"from": str(p), "share": s} for p, s in zip(bundles, (1 / 8, 2 / 8, 5 / 8), strict=True)]
    }  # the scores of the parts are not those of the mean


def test_one_checkpoint_averaged_with_its_copy_stays_what_it_is(bundles, tmp_path):
    copy = shutil.copytree(bundles[0], tmp_path / "copy")
    before, after = load(bundles[0]).model.state_dict(), average([bundles[0], copy]).model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_what_is_no_checkpoint_of_the_same_model_is_refused_by_name(bundles, tmp_path):
    tiny(0, channels=(8, 8, 8, 8, 16)).save(tmp_path / "wide")
    with pytest.raises(WeightsError) as caught:
        average([bundles[0], tmp_path / "wide"])
    assert f"{tmp_path / 'wide'}: has channels [8, 8, 8, 8, 16], but {bundles[0]} has [8, 8, 8, 8, 8]" in str(
        caught.value
    )
    assert "only weights of one model can be averaged" in str(caught.value)
    replace(tiny(0), labels=LabelSpace.named(["roof", "tree"])).save(tmp_path / "trees")
    with pytest.raises(WeightsError, match=r"trees: has classes roof, tree, but .*m0 has roof, road"):
        average([bundles[0], tmp_path / "trees"])
    with pytest.raises(ConfigError, match="2 weights for 3 checkpoints"):
        average(bundles, [1, 2])
    again = bundles[1].parent / "." / ".." / bundles[1].parent.name / "m1"
    for make in (lambda: average([*bundles, again], [1, 2, 5, 2]), lambda: greedy_soup([*bundles, again], len)):
        with pytest.raises(ConfigError, match=r"average: .*m1 is there twice; give it once, with a larger weight"):
            make()
    with pytest.raises(ConfigError, match="finite and not negative, and not all 0"):
        average(bundles[:2], [0, 0])
    with pytest.raises(WeightsError, match="no such checkpoint"):
        average([bundles[0], tmp_path / "none.ckpt"])


def test_the_verb_writes_over_nothing_that_it_averages(bundles, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(bundles[0], run / "a")
    for out in (run, run / "a"):
        words = ["ensemble", "average", str(run / "a"), str(bundles[1]), "--out", str(out), "--overwrite"]
        assert main(words) == 1
        assert f"{out}: {run / 'a'} is read to make the result, which would replace it" in capsys.readouterr().err
    assert load(run / "a").card == load(bundles[0]).card


def test_the_greedy_soup_takes_what_does_not_make_it_worse(bundles):
    # By hand: scores of single ones and of means. m1 is best; with m2 it rises; with m0, too, it would fall.
    scores = {("m1",): 0.8, ("m2",): 0.7, ("m0",): 0.6, ("m1", "m2"): 0.85, ("m1", "m2", "m0"): 0.84}
    judged = []

    def score(bundle: Bundle) -> float:
        made = bundle.card.get("averaged")
        key = tuple(Path(part["from"]).name for part in made) if made else (singles.pop(0),)
        judged.append(key)
        return scores[key]

    singles = ["m0", "m1", "m2"]
    soup = greedy_soup(bundles, score)
    assert soup.used == (bundles[1], bundles[2])
    assert soup.score == 0.85
    assert [value for _, value in soup.alone] == [0.8, 0.7, 0.6]
    assert judged[3:] == [("m1", "m2"), ("m1", "m2", "m0")]
    halves = average([bundles[1], bundles[2]]).model.state_dict()
    assert all(torch.equal(tensor, halves[name]) for name, tensor in soup.bundle.model.state_dict().items())


class Net(nn.Module):
    """Two normalisations, dropout between them, and one that is kept fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.conv, self.second = nn.BatchNorm2d(2), nn.Dropout(0.9), nn.Conv2d(2, 3, 1), None
        self.second = nn.BatchNorm2d(3, momentum=None)
        self.fixed = nn.BatchNorm2d(3)

    def train(self, mode: bool = True) -> "Net":
        super().train(mode)
        self.fixed.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fixed(self.second(self.conv(self.drop(self.first(x)))))


def test_statistics_are_those_of_all_values_of_all_batches_not_means_of_batches():
    torch.manual_seed(0)
    model = Net()
    # Batches of other sizes, far apart: a mean of their variances would be 1, the truth is above 20.
    batches = [torch.randn(n, 2, 4, 5) + 5 * n for n in (1, 2, 3)]
    fixed = {name: value.clone() for name, value in model.fixed.state_dict().items()}
    counted = int(model.first.num_batches_tracked)
    assert recompute_statistics(model, iter(batches)) == 6
    seen = np.concatenate([b.numpy().transpose(1, 0, 2, 3).reshape(2, -1) for b in batches], 1)
    np.testing.assert_allclose(model.first.running_mean, seen.mean(1), rtol=1e-5)
    np.testing.assert_allclose(model.first.running_var, seen.var(1, ddof=1), rtol=1e-5)
    assert seen.var(1).min() > 10
    # The second sees what the first normalises batch by batch, without dropout.
    weight, bias = model.conv.weight.detach().numpy()[:, :, 0, 0], model.conv.bias.detach().numpy()
    normal = []
    for batch in batches:
        values = batch.numpy().transpose(1, 0, 2, 3).reshape(2, -1)
        normal.append((values - values.mean(1, keepdims=True)) / np.sqrt(values.var(1, keepdims=True) + 1e-5))
    inner = weight @ np.concatenate(normal, 1) + bias[:, None]
    np.testing.assert_allclose(model.second.running_mean, inner.mean(1), atol=1e-5)
    np.testing.assert_allclose(model.second.running_var, inner.var(1, ddof=1), rtol=1e-4)
    assert all(torch.equal(value, fixed[name]) for name, value in model.fixed.state_dict().items())
    assert int(model.first.num_batches_tracked) == counted
    assert not any(module.training for module in model.modules())


def test_modes_stay_as_they_are_and_models_without_statistics_take_no_image():
    model = Net().train()
    assert normalisations(model) == [model.first, model.second]
    assert (model.first.training, model.fixed.training) == (True, False)

    def never():
        raise AssertionError("nothing is looked at")
        yield

    assert recompute_statistics(nn.Conv2d(3, 2, 1), never()) == 0
    before = model.first.running_mean.clone()
    with pytest.raises(ConfigError, match="no image to take them from"):
        recompute_statistics(model, iter(()))
    assert torch.equal(model.first.running_mean, before)
