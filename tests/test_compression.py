"""Steps of compression: exact sparsity, k-means against scikit-like loops, gradients of few-valued weights, bundles."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from visionapps.compression.compress import Step, compress
from visionapps.compression.few_values import BinaryWeights, TernaryWeights
from visionapps.compression.layers import bake, impose, inner_layers, weight_layers
from visionapps.compression.pruning import Masked, Prune, magnitude_masks
from visionapps.compression.sharing import Share, cluster
from visionapps.errors import ConfigError
from visionapps.inference.bundle import Bundle
from visionapps.inference.packed import Ledger, ledger
from visionapps.models import faster_rcnn, unet
from visionapps.models.detection import Features, Regions
from visionapps.structures import LabelSpace


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 5),
    )


def train(model: nn.Module, steps: int = 5) -> None:
    torch.manual_seed(1)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, momentum=0.9, weight_decay=0.1)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.arange(4)).backward()
        optimizer.step()


def weights(model: nn.Module) -> list[Tensor]:
    return [module.weight.detach() for module in weight_layers(model).values()]  # type: ignore[misc]


def test_exactly_the_smallest_weights_of_all_layers_become_zero() -> None:
    model = net()
    before = torch.cat([w.flatten() for w in weights(model)])
    Prune(0.7).install(model)
    bake(model)
    after = torch.cat([w.flatten() for w in weights(model)])
    zeros = round(0.7 * len(before))
    assert int((after == 0).sum()) == zeros
    order = before.abs().argsort()
    assert (after[order[:zeros]] == 0).all()
    assert torch.equal(after[order[zeros:]], before[order[zeros:]])


def test_per_layer_each_has_its_share_and_kept_layers_have_none() -> None:
    model = net()
    Prune(0.5, "layer", keep=("6",)).install(model)
    bake(model)
    first, second, last = weights(model)
    assert [(w == 0).sum().item() for w in (first, second, last)] == [108, 288, 0]


def test_zeros_stay_zero_in_training_with_momentum_and_weight_decay_and_the_rest_learns() -> None:
    model = net()
    Prune(0.6).install(model)
    zeros = [w == 0 for w in weights(model)]
    before = [w.clone() for w in weights(model)]
    train(model)
    bake(model)
    for w, old, zero in zip(weights(model), before, zeros, strict=True):
        assert (w[zero] == 0).all()
        assert (w[~zero] != old[~zero]).float().mean() > 0.99
    assert not any("parametrizations" in name for name in model.state_dict())
    assert set(model.state_dict()) == set(net().state_dict())


def lloyd(values: np.ndarray, count: int) -> np.ndarray:
    """The textbook's k-means: every number to the nearest centre, every centre to its mean."""
    centres = np.linspace(values.min(), values.max(), count)
    for _ in range(300):
        nearest = np.abs(values[:, None] - centres).argmin(1)
        means = np.array([values[nearest == k].mean() if (nearest == k).any() else centres[k] for k in range(count)])
        if np.allclose(means, centres, rtol=0, atol=1e-12):
            break
        centres = means
    return centres[np.unique(np.abs(values[:, None] - centres).argmin(1))]


def test_codebooks_are_those_of_a_plain_k_means() -> None:
    values = np.random.default_rng(0).normal(size=2000)
    codebook, codes = cluster(values, 16)
    assert codebook == pytest.approx(lloyd(values, 16), abs=1e-5)
    assert (np.abs(values[:, None] - codebook).argmin(1) == codes).mean() > 0.999


@given(st.lists(st.floats(-1e3, 1e3, width=32), max_size=80), st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_a_codebook_is_ascending_and_no_larger_than_asked(numbers: list[float], count: int) -> None:
    values = np.array(numbers, np.float32)
    codebook, codes = cluster(values, count)
    assert len(codebook) <= count
    assert all(a < b for a, b in pairwise(codebook.tolist()))
    assert set(codes.tolist()) == set(range(len(codebook)))
    if len(set(numbers)) <= count:
        assert np.array_equal(codebook[codes], values)


def test_the_decks_example_of_sixteen_weights_and_four_values_is_3_2_times_smaller() -> None:
    # 16 x 32 bits against 16 x 2 bits and 4 x 32.
    values = np.array([2.09, -0.98, 1.48, 0.09, 0.05, -0.14, -1.08, 2.12, -0.91, 1.92, 0, -1.03, 1.87, 0, 1.53, 1.49])
    codebook, codes = cluster(values, 4)
    assert codebook == pytest.approx([-1.0, 0.0, 1.5, 2.0], abs=0.01)  # figure 3 of Han et al.
    assert codes.reshape(4, 4).tolist() == [[3, 0, 2, 1], [1, 1, 0, 3], [0, 3, 1, 0], [3, 1, 2, 2]]
    assert 16 * 32 / (16 * 2 + len(codebook) * 32) == 3.2


def test_shared_weights_move_together_with_the_sum_of_their_gradients() -> None:
    layer = nn.Linear(6, 4)
    layer.weight.data.view(-1)[:5] = 0
    Share(2).install(nn.Sequential(layer))
    rule = layer.parametrizations.weight[0]
    made = layer.weight
    gradient = torch.randn(4, 6)
    made.backward(gradient)
    for number in range(len(rule.codebook)):
        of_it = (rule.codes == number + 1).reshape(4, 6)
        assert rule.codebook.grad[number] == pytest.approx(float(gradient[of_it].sum()), abs=1e-5)
    assert len(made.unique()) <= 5


def test_zeros_survive_sharing_and_each_layer_keeps_its_bits_after_training() -> None:
    model = net()
    for step in (Prune(0.5), Share(3, linear_bits=2)):
        step.install(model)
        train(model)
        bake(model)
    first, second, last = weights(model)
    assert int(sum((w == 0).sum() for w in (first, second, last))) >= round(0.5 * (216 + 576 + 640))
    assert max(len(first[first != 0].unique()), len(second[second != 0].unique())) <= 8
    assert len(last[last != 0].unique()) <= 4
    assert all(p.requires_grad for p in model.parameters())


def ternary_gradients(
    w: np.ndarray, g: np.ndarray, wp: float, wn: float, share: float
) -> tuple[np.ndarray, float, float]:
    """Entry by entry, from the definition."""
    limit, latent, dp, dn = share * np.abs(w).max(), np.zeros_like(w), 0.0, 0.0
    for i, x in np.ndenumerate(w):
        if x > limit:
            latent[i], dp = wp * g[i], dp + g[i]
        elif x < -limit:
            latent[i], dn = wn * g[i], dn - g[i]
        else:
            latent[i] = g[i]
    return latent, dp, dn


def test_ternary_weights_have_three_values_and_the_papers_gradients() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 2))
    TernaryWeights(0.3).install(layers)
    middle = layers[1]
    made, latent = middle.weight, middle.parametrizations.weight.original
    rule = middle.parametrizations.weight[0]
    gradient = torch.randn_like(latent)
    made.backward(gradient)
    wp, wn = rule.positive.item(), rule.negative.item()
    assert set(made.unique().tolist()) == {-wn, 0.0, wp}
    expected = ternary_gradients(latent.detach().numpy(), gradient.numpy(), wp, wn, 0.3)
    assert np.allclose(latent.grad, expected[0], atol=1e-6)
    assert (rule.positive.grad.item(), rule.negative.grad.item()) == pytest.approx(expected[1:], abs=1e-5)
    assert [hasattr(each, "parametrizations") for each in layers] == [False, True, False]


def test_binary_weights_are_the_nearest_of_one_size_per_filter() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ConvTranspose2d(4, 3, 2), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))
    before = [layers[i].weight.detach().clone() for i in (1, 2)]
    BinaryWeights().install(layers)
    layers[2].weight.sum().backward()
    latent = layers[2].parametrizations.weight.original
    scale = before[1].abs().mean((1, 2, 3), keepdim=True)
    assert torch.allclose(latent.grad, 1 / 27 + scale.expand_as(latent))  # all |w| are below 1
    bake(layers)
    for weight, old, dim in ((layers[1].weight, before[0], 1), (layers[2].weight, before[1], 0)):
        for made, filter_ in zip(weight.detach().unbind(dim), old.unbind(dim), strict=True):
            size = filter_.abs().mean()
            assert torch.allclose(made, filter_.sign() * size)
            # No other size comes nearer (Rastegari et al., equation 6).
            errors = [((filter_.sign() * (size * f)) - filter_).square().sum() for f in (0.9, 1.0, 1.1)]
            assert min(errors) == errors[1]


@pytest.mark.parametrize("steps", [(Prune(0.5, "layer"), Share(4)), (TernaryWeights(),), (BinaryWeights(),)])
@pytest.mark.parametrize("kind", ["segmentor", "detector"])
def test_a_bundle_of_any_kind_becomes_a_smaller_one_and_stays_itself(
    kind: str, steps: Sequence[Step], tmp_path
) -> None:
    torch.manual_seed(0)
    model = (
        unet("test_efficientnet", 3, channels=(8, 8, 8, 8, 8))
        if kind == "segmentor"
        else faster_rcnn(
            "test_efficientnet", 3, features=Features(strides=(8, 16), channels=8), regions=Regions(hidden=8, size=3)
        )
    ).eval()
    bundle = Bundle(model, LabelSpace.named(["a", "b", "c"]), 64, {"metrics": {"mean_dice": 0.5}})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen: list[int] = []
    small = compress(bundle, steps, retrain=lambda m: seen.append(len(list(m.parameters()))))
    assert len(seen) == len(steps)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    small.save(tmp_path / "small")
    bundle.save(tmp_path / "whole")
    sizes = [(tmp_path / name / "weights.safetensors").stat().st_size for name in ("small", "whole")]
    assert sizes[0] < 0.5 * sizes[1]
    assert small.card["compression"] == [str(step) for step in steps]
    assert small.card["metrics_before"] == {"mean_dice": 0.5}
    assert "metrics" not in small.card


def test_what_cannot_be_done_says_why() -> None:
    model = net()
    for wrong in (0, 1, -0.1, float("nan")):
        with pytest.raises(ConfigError, match="must lie between 0 and 1"):
            Prune(wrong)
    model[3].weight.data *= 1e-3
    with pytest.raises(ConfigError, match=r"at 50.0% zeros nothing is left of 3; prune less, or per layer"):
        magnitude_masks(model, 0.5)
    with pytest.raises(ConfigError, match="9 bits per weight; give 1 to 8"):
        Share(9)
    with pytest.raises(ConfigError, match=r"keep 'x\*': no layer has such a name; the model has 0, 3, 6"):
        weight_layers(model, keep=("x*",))
    with pytest.raises(ConfigError, match="the first and the last one stay exact"):
        inner_layers(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    model[0].weight.data[0] = float("nan")
    with pytest.raises(ConfigError, match="a weight is NaN or infinite"):
        Share(2).install(model)
    with pytest.raises(ConfigError, match="nothing to do"):
        compress(None, ())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="threshold 1 must be a share of the largest weight"):
        TernaryWeights(1)


def test_pruned_weights_alone_are_written_as_what_is_left_and_its_gaps() -> None:
    model = net()
    Prune(0.6).install(model)
    bake(model)
    for weight in weights(model):
        assert not torch.signbit(weight[weight == 0]).any()  # -0.0 has a bit that must be kept
    count = sum(w.numel() for w in weights(model))
    stages = sum((ledger(w) for w in weights(model)), Ledger(0, 0, 0, 0))
    assert stages.sparse <= 5 * (0.4 * count + 2)  # 4 bytes and a gap for each


def test_a_model_under_a_rule_can_be_copied_as_averages_of_weights_do() -> None:
    import copy

    layer = nn.Linear(3, 3)
    impose(layer, Masked(torch.eye(3).bool()))
    assert torch.equal(copy.deepcopy(layer).weight, layer.weight)
