"""What the claims about small networks stand on: drawn pictures, directions of a loss surface, random labels."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

TOOLS = Path(__file__).parents[1] / "tools" / "claims"


@pytest.fixture(scope="module", autouse=True)
def _path():
    sys.path.insert(0, str(TOOLS))
    yield
    sys.path.remove(str(TOOLS))


def test_pictures_depend_on_the_seed_alone_and_have_every_class_equally():
    import pictures

    first, again = (pictures.draw_pictures(40, 20, side=12, seed=3) for _ in range(2))
    other = pictures.draw_pictures(40, 20, side=12, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.train, other.train)
    assert first.train.shape == (40, 3, 12, 12)
    assert first.test_labels.bincount(minlength=10).tolist() == [2] * 10
    torch.testing.assert_close(first.train.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(first.train.std((0, 2, 3), correction=0), torch.ones(3))


def test_the_colours_of_a_picture_do_not_tell_its_class():
    import pictures

    drawn = pictures.draw_pictures(2000, 0, side=8, seed=0)
    means = torch.stack([drawn.train[drawn.train_labels == k].mean((0, 2, 3)) for k in range(10)])
    assert float(means.abs().max()) < 0.2  # 200 pictures of standard deviation below 1 each: 0.07


def test_cifar_is_read_from_its_binary_form_and_missing_files_are_named(tmp_path):
    import pictures

    with pytest.raises(SystemExit) as caught:
        pictures.read_cifar(tmp_path)
    assert "no data_batch_1.bin, data_batch_2.bin" in str(caught.value)
    generator = np.random.default_rng(0)
    records = generator.integers(0, 256, (6, 20, 3073), dtype=np.uint8)
    records[..., 0] %= 10
    for name, part in zip([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], records, strict=True):
        part.tofile(tmp_path / f"{name}.bin")
    read = pictures.read_cifar(tmp_path)
    assert (len(read.train), len(read.test)) == (100, 20)
    assert read.train_labels.tolist() == records[:5, :, 0].flatten().tolist()
    assert read.test_labels.tolist() == records[5, :, 0].tolist()
    greens = records[:5, :, 1025:2049].reshape(-1, 32, 32) / 255
    green = (greens[5] - greens.mean()) / greens.std()
    np.testing.assert_allclose(read.train[5, 1].numpy(), green, atol=1e-4)


def test_each_filter_of_a_direction_is_as_long_as_the_networks_and_norms_stay():
    import loss_surface

    from visionapps.networks.cifar_resnet import cifar_resnet

    torch.manual_seed(0)
    network = cifar_resnet(8)
    found = loss_surface.direction(network, torch.Generator().manual_seed(1))
    parameters = dict(network.named_parameters())
    layers = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert sorted(found) == sorted(f"{name}.weight" for name in layers)
    for name, step in found.items():
        for row, wanted in zip(step, parameters[name], strict=True):
            assert float(row.norm()) == pytest.approx(float(wanted.detach().norm()), rel=1e-5)


def test_looking_around_gives_the_loss_of_moved_weights_and_leaves_the_network_as_it_was():
    import loss_surface

    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    ways = [loss_surface.direction(network, torch.Generator().manual_seed(i)) for i in range(2)]
    images, labels = torch.randn(5, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    loss = loss_surface.look_around(network, ways, (images, labels), grid=5, reach=2.0, title="x")
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    weight = before["1.weight"] - 1.0 * ways[0]["1.weight"] + 2.0 * ways[1]["1.weight"]
    logits = images.flatten(1) @ weight.T + before["1.bias"]
    assert loss[1, 4] == pytest.approx(float(nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    assert loss[2, 2] == pytest.approx(float(nn.functional.cross_entropy(network(images), labels).detach()), rel=1e-5)


@pytest.mark.parametrize(("share", "kept"), [(0.0, 1.0), (0.5, 0.55), (1.0, 0.1)])
def test_random_labels_replace_their_share_and_agree_by_chance_alone(share, kept):
    import pictures
    import random_labels

    data = pictures.Pictures(torch.zeros(5000, 1), torch.arange(5000) % 10, torch.zeros(0, 1), torch.zeros(0))
    labels = random_labels.with_random_labels(data, share, seed=0).train_labels
    assert float((labels == data.train_labels).float().mean()) == pytest.approx(kept, abs=0.03)
    assert labels.min() >= 0
    assert labels.max() <= 9


def test_moves_and_flips_keep_every_pixel_in_its_row_and_add_only_zeros():
    import small_training

    images = torch.arange(1.0, 65).reshape(1, 1, 8, 8).repeat(50, 1, 1, 1)
    out = small_training.moved(images, torch.Generator().manual_seed(0))
    assert out.shape == images.shape
    centres = {tuple(row.tolist()) for row in out[:, 0, 4]}
    assert len(centres) > 6
    for row in centres:
        values = [v for v in row if v]
        steps = {b - a for a, b in itertools.pairwise(values)}
        assert steps in ({1.0}, {-1.0})
        assert len(values) >= 7  # moved by an eighth of eight pixels at the most


def test_a_network_learns_to_tell_few_pictures_apart_and_the_seed_decides_how():
    import pictures
    import small_training

    from visionapps.networks.cifar_resnet import cifar_resnet

    data = pictures.draw_pictures(20, 10, side=8, seed=0)

    def run():
        torch.manual_seed(0)
        network = cifar_resnet(8)
        return small_training.fit(network, data, small_training.Recipe(20, 10, 0.05), seed=1, title="test")

    first, again = run(), run()
    assert first == again
    assert len(first.losses) == 20
    assert sum(first.losses[-5:]) < 0.7 * sum(first.losses[:5])
