"""Blocks that are skipped image by image: what is not needed is not computed; gates and policies learn to skip."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from visionapps.errors import ConfigError
from visionapps.networks.blockdrop import BlockDrop, blockdrop
from visionapps.networks.cifar_resnet import cifar_resnet
from visionapps.networks.convnet_aig import Gate, GatedNetwork, convnet_aig
from visionapps.networks.residual import residual_blocks
from visionapps.networks.skipping import kept_share


def flops(network: torch.nn.Module, image: torch.Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops()


def test_sizes_are_those_of_the_papers() -> None:
    with torch.device("meta"):
        gated, dropping = convnet_aig(), blockdrop()
        plain = cifar_resnet(110)
        assert gated(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    count = [sum(p.numel() for p in network.parameters()) for network in (gated, dropping, plain)]
    # A gate on D channels: 16 D weights, 2 x 16 of the norm, 2 x 16 + 2. Block 19 and 37 still see the width before.
    gates = sum(16 * d + 32 + 34 for d in [16] * 19 + [32] * 18 + [64] * 17)
    assert count[0] == count[2] + gates
    assert count[0] == pytest.approx(1.78e6, rel=0.02)  # Veit and Belongie, table 1
    assert dropping.blocks == gated.blocks == 54  # Wu et al.: 54 blocks in ResNet-110
    assert sum(p.numel() for p in dropping.policy.parameters()) == sum(
        p.numel() for p in cifar_resnet(8, 54).parameters()
    )


def test_new_gates_let_85_of_100_images_pass_and_draw_whole_decisions() -> None:
    torch.manual_seed(0)
    gate = Gate(4).train()
    drawn = gate(torch.randn(4000, 4, 2, 2))
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert drawn.mean().item() == pytest.approx(0.85, abs=0.02)
    assert (gate.eval()(torch.randn(9, 4, 2, 2)) == 1).all()


def choose(network: GatedNetwork, table: torch.Tensor) -> None:
    """Let the gates decide by a table (L, B) instead."""

    class Fixed(torch.nn.Module):
        def __init__(self, row: torch.Tensor) -> None:
            super().__init__()
            self.row = row

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.row

    network.gates = torch.nn.ModuleList(Fixed(row) for row in table)


def test_skipped_blocks_cost_nothing_and_kept_ones_give_what_all_of_them_multiplied_gave() -> None:
    torch.manual_seed(0)
    network = convnet_aig(5, 2, depth=14).eval()
    image = torch.randn(4, 2, 12, 12)
    table = (torch.rand(6, 4) > 0.5).float()
    table[2], table[3] = 0, 1  # a block that nobody needs, and one that all do
    choose(network, table)
    with torch.no_grad():
        sparse = network.walk(image, lambda i, _: table[i], dense=False)
        dense = network.walk(image, lambda i, _: table[i], dense=True)
    assert torch.allclose(sparse.logits, dense.logits, atol=1e-5)
    assert torch.equal(sparse.kept, table.T)
    assert torch.equal(kept_share(network, image), table.mean(1))
    choose(network, torch.zeros(6, 4))
    nothing = flops(network, image)
    bodies = []
    for i in range(6):
        alone = torch.zeros(6, 4)
        alone[i] = 1
        choose(network, alone)
        bodies.append(flops(network, image) - nothing)
    choose(network, table)
    assert flops(network, image) == nothing + sum(
        int(b * share) for b, share in zip(bodies, table.mean(1), strict=True)
    )


def test_all_gates_open_is_the_residual_network_itself() -> None:
    torch.manual_seed(0)
    plain = cifar_resnet(8, 3, 3).eval()
    image = torch.randn(2, 3, 9, 11)
    expected = plain(image)
    gated = GatedNetwork(plain).eval()
    choose(gated, torch.ones(3, 2))
    assert torch.equal(gated(image), expected)


def learnable(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (count,), generator=drawn)
    image = torch.randn(count, 1, 8, 8, generator=drawn) * 0.3
    image[labels == 1, :, :4] += 1
    return image, labels


def test_gates_come_near_their_target_while_the_network_learns() -> None:
    torch.manual_seed(0)
    network = convnet_aig(2, 1, depth=14, target=0.3).train()
    image, labels = learnable(64)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    penalties = []
    for _ in range(60):
        outputs = network.outputs(image)
        loss = F.cross_entropy(outputs.logits[0], labels) + outputs.penalty
        penalties.append(outputs.penalty.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert penalties[0] == pytest.approx(6 * (0.85 - 0.3) ** 2, rel=0.3)
    assert sum(penalties[-10:]) / 10 < 0.25 * penalties[0]
    assert all(p.grad is not None for p in network.gates.parameters())
    with torch.no_grad():
        right = (network.eval()(image).argmax(1) == labels).float().mean()
    assert right > 0.9
    assert kept_share(network, image).mean() < 0.7


def test_a_policy_learns_to_drop_blocks_and_keeps_the_answers() -> None:
    torch.manual_seed(0)
    plain = cifar_resnet(14, 2, 1)
    image, labels = learnable(64)
    optimizer = torch.optim.Adam(plain.parameters(), 1e-2)
    for _ in range(25):
        optimizer.zero_grad()
        F.cross_entropy(plain.train()(image), labels).backward()
        optimizer.step()
    network = BlockDrop(plain, 1).train()
    before = {name: t.clone() for name, t in network.features.state_dict().items()}
    optimizer = torch.optim.Adam(network.policy.parameters(), 3e-3)
    drawn = torch.Generator().manual_seed(1)
    steps = []
    for step in range(60):
        free = min(network.blocks, 1 + step // 4)  # the curriculum
        result = network.reinforce(image, labels, free=free, wrong=1.0, generator=drawn)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        steps.append(result)
    assert all(torch.equal(before[name], t) for name, t in network.features.state_dict().items())
    assert steps[-1].right >= 0.95
    assert steps[-1].kept < 0.6
    assert steps[-1].reward > steps[0].reward
    assert steps[0].kept >= 5 / 6  # one free block
    # Joint finetuning reaches the network, too.
    network.reinforce(image, labels, joint=True, generator=drawn).loss.backward()
    assert next(network.features.parameters()).grad is not None


def test_rewards_and_gradients_of_a_policy_are_those_of_the_definition() -> None:
    torch.manual_seed(0)
    network = blockdrop(2, 1, depth=8).eval()
    image, labels = learnable(6)
    result = network.reinforce(image, labels, wrong=2.0, generator=torch.Generator().manual_seed(3))
    chances = network.probabilities(image)
    assert 0.2 <= chances.min() <= chances.max() <= 0.8
    drawn = torch.bernoulli(chances.detach(), generator=torch.Generator().manual_seed(3))
    loss = rewards = 0.0
    for i in range(6):  # image by image

        def reward(keep: torch.Tensor, i: int = i) -> float:
            x = network.features[0](image[i : i + 1])
            for k, block in enumerate(residual_blocks(network.features)):
                x = block.after(block.shortcut(x) + (block.body(x) if keep[k] else 0))
            right = network.head(x).argmax() == labels[i]
            return 1 - (float(keep.sum()) / 3) ** 2 if right else -2.0

        advantage = reward(drawn[i]) - reward(chances[i] > 0.5)
        rewards += reward(drawn[i]) / 6
        loss -= advantage * torch.distributions.Bernoulli(chances[i]).log_prob(drawn[i]).sum() / 6
    assert result.reward == pytest.approx(rewards)
    assert result.loss.item() == pytest.approx(float(loss.detach()), rel=1e-4)


def test_what_cannot_skip_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs a residual network with shortcuts and without stochastic depth"):
        GatedNetwork(cifar_resnet(8, shortcut="none"))
    with pytest.raises(ConfigError, match="needs a residual network"):
        BlockDrop(cifar_resnet(8, survival=0.5))
    with pytest.raises(ConfigError, match="target 0 must be a share"):
        convnet_aig(depth=8, target=0)
    with pytest.raises(ConfigError, match="4 free blocks of 3; give 1 to 3"):
        blockdrop(depth=8).reinforce(torch.zeros(1, 3, 8, 8), torch.zeros(1).long(), free=4)
    with pytest.raises(ConfigError, match="smallest legal size is 4 x 4"):
        convnet_aig(depth=8).eval()(torch.zeros(1, 3, 3, 8))
