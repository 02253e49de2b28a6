"""MSDNet: published counts per exit, anytime answers, images that leave early and cost no more."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from visionapps.errors import ConfigError
from visionapps.networks.exits import NEVER, ExitNetwork, budget_shares, fit_thresholds, mean_cost
from visionapps.networks.msdnet import Growth, msdnet, msdnet_imagenet

SMALL = Growth(channels=4, rate=2, factors=(1, 2))


def costs_of(network: ExitNetwork, side: int) -> tuple[list[float], list[int]]:
    """Multiply-adds and parameters up to each exit, earlier exits included, as the published tables count them."""
    state, macs, parameters, sums = torch.zeros(1, 3, side, side, device="meta"), 0.0, 0, ([], [])
    for step, head in zip(network.features, network.heads, strict=True):
        with FlopCounterMode(display=False) as counter:
            state = step(state)
            head(state[-1])
        macs += counter.get_total_flops() / 2
        parameters += sum(p.numel() for part in (step, head) for p in part.parameters())
        sums[0].append(macs / 1e6)
        sums[1].append(parameters)
    return sums


def small(seed: int = 0) -> ExitNetwork:
    torch.manual_seed(seed)
    network = msdnet(5, 2, exits=3, growth=SMALL).train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(16, 2, 16, 16))  # statistics that let images differ
    return network.eval()


def test_the_cifar_network_has_the_published_parameters_and_multiply_adds_at_each_of_seven_exits() -> None:
    with torch.device("meta"):
        network = msdnet().eval()
    macs, parameters = costs_of(network, 32)
    assert parameters[-1] == sum(p.numel() for p in network.parameters()) == 3_966_664
    assert macs == pytest.approx([6.79, 14.21, 27.04, 48.05, 75.90, 108.19, 136.57], rel=1e-3)
    assert [round(p / 1e6, 2) for p in parameters] == [0.30, 0.65, 1.11, 1.73, 2.38, 3.05, 3.97]
    # The table of the authors, whose counter adds pooling and activations.
    assert macs == pytest.approx([6.86, 14.35, 27.31, 48.45, 76.43, 108.90, 137.30], rel=0.012)


@pytest.mark.parametrize(
    ("layers", "millions", "macs"),
    [
        (4, [4.24, 8.77, 13.07, 16.75, 23.96], [339.90, 685.46, 1008.16, 1254.47, 1360.53]),
        (7, [8.76, 20.15, 31.73, 41.86, 62.31], [615.66, 1436.39, 2283.41, 2967.42, 3253.79]),
    ],
)
def test_the_imagenet_networks_have_the_published_sizes(layers: int, millions: list[float], macs: list[float]) -> None:
    with torch.device("meta"):
        network = msdnet_imagenet(layers=layers).eval()
    ours, parameters = costs_of(network, 224)
    assert [round(p / 1e6, 2) for p in parameters] == millions
    assert ours == pytest.approx(macs, rel=0.01)


def test_outputs_hold_the_last_exit_first_and_stopping_early_computes_less() -> None:
    network = small()
    image = torch.randn(3, 2, 16, 16)
    with torch.no_grad():
        outputs = network.outputs(image)
        assert torch.equal(outputs.logits[0], network(image))
        assert len(outputs.logits) == 1 + len(network.auxiliary) == 3
        assert outputs.penalty == 0
        with FlopCounterMode(display=False) as whole:
            list(network.anytime(image))
        with FlopCounterMode(display=False) as first:
            assert torch.equal(next(network.anytime(image)), outputs.logits[1])
    assert first.get_total_flops() < 0.5 * whole.get_total_flops()


def test_images_leave_where_they_are_sure_and_what_they_leave_is_not_computed() -> None:
    network = small()
    image = torch.randn(12, 2, 16, 16)
    with torch.no_grad():
        confidence = torch.stack(
            [each.softmax(1).amax(1) for each in (network.outputs(image).logits[i] for i in (1, 2, 0))]
        )
        every = network.outputs(image).logits
        by_exit = (every[1], every[2], every[0])
        thresholds = torch.tensor([confidence[0].median(), confidence[1].quantile(0.3)])
        expected = [  # a plain loop
            next((e for e in (0, 1) if confidence[e, i] >= thresholds[e]), 2) for i in range(len(image))
        ]
        with FlopCounterMode(display=False) as counter:
            routed = network.route(image, thresholds)
        with FlopCounterMode(display=False) as whole:
            list(network.anytime(image))
    assert routed.exits.tolist() == expected
    assert set(expected) == {0, 1, 2}
    for i, exit_ in enumerate(expected):
        assert torch.allclose(routed.logits[i], by_exit[exit_][i], atol=1e-5)
    with FlopCounterMode(display=False) as one:
        next(network.anytime(image[:1]))
    per_exit = [one.get_total_flops()]
    for exits in (2, 3):
        with FlopCounterMode(display=False) as one:
            for _, _ in zip(range(exits), network.anytime(image[:1]), strict=False):
                pass
        per_exit.append(one.get_total_flops())
    assert counter.get_total_flops() == sum(per_exit[exit_] for exit_ in expected) < whole.get_total_flops()


def test_thresholds_are_part_of_the_weights_and_hold_in_evaluation_only() -> None:
    network, image = small(), torch.randn(6, 2, 16, 16)
    whole = network(image)
    network.thresholds.fill_(0.0)
    again = small(1)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(image), network.outputs(image).logits[1])  # all leave at once
    assert not torch.equal(again(image), whole)
    again.train()
    assert torch.equal(again(image), again.outputs(image).logits[0])


@given(
    confidence=st.integers(1, 60).flatmap(
        lambda n: st.lists(st.lists(st.floats(0, 1, width=32), min_size=n, max_size=n), min_size=4, max_size=4)
    ),
    budget=st.floats(1, 12),
)
@settings(max_examples=150, deadline=None)
def test_thresholds_meet_the_budget_on_the_images_that_they_were_fitted_to(
    confidence: list[list[float]], budget: float
) -> None:
    costs = (1.0, 3.0, 6.0, 10.0)
    table = torch.tensor(confidence)
    shares = budget_shares(costs, budget)
    thresholds = fit_thresholds(table, shares)
    exits = [next((e for e in range(3) if table[e, i] >= thresholds[e]), 3) for i in range(table.shape[1])]
    assert mean_cost(torch.tensor(exits), costs) <= budget + 1e-5
    assert sum(shares) == pytest.approx(1)
    distinct = all(len(set(row)) == len(row) for row in confidence)
    if distinct:  # then no image leaves too early but for rounding to whole images
        assert mean_cost(torch.tensor(exits), costs) >= min(budget, 10.0) - sum(costs) / table.shape[1] - 1e-5


def test_shares_are_geometric_and_a_budget_is_refused_that_no_exit_meets() -> None:
    shares = budget_shares((1.0, 2.0, 3.0), 1.5)
    assert sum(s * c for s, c in zip(shares, (1, 2, 3), strict=True)) == pytest.approx(1.5)
    assert shares[1] / shares[0] == pytest.approx(shares[2] / shares[1])
    assert budget_shares((1.0, 2.0), 5.0) == (0.0, 1.0)
    assert fit_thresholds(torch.rand(2, 9), (0.0, 1.0)).tolist() == [NEVER]
    with pytest.raises(
        ConfigError, match=r"a budget of 0.5 per image cannot be met, the first exit costs 1; give more"
    ):
        budget_shares((1.0, 2.0), 0.5)
    with pytest.raises(ConfigError, match="must ascend"):
        budget_shares((2.0, 1.0), 3)


def test_sizes_and_settings_that_cannot_be_are_refused() -> None:
    network = small()
    with pytest.raises(ConfigError, match=r"image of 1 x 9 px .* the smallest legal size is 2 x 2"):
        network(torch.zeros(1, 2, 1, 9))
    assert network(torch.zeros(1, 2, 2, 2)).shape == (1, 5)
    assert network(torch.zeros(2, 2, 37, 21)).shape == (2, 5)
    with pytest.raises(ConfigError, match="0 exits; give at least 1"):
        msdnet(exits=0)
    with pytest.raises(ConfigError, match="widths must be positive, the rate even"):
        Growth(rate=3)


def test_all_exits_learn() -> None:
    network = small().train()
    outputs = network.outputs(torch.randn(4, 2, 16, 16))
    torch.stack([logits.square().sum() for logits in outputs.logits]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
