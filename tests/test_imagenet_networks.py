"""The ImageNet networks written here: sizes, counts and depths that their papers print, and equality with libraries."""

import re
from collections.abc import Callable, Iterator, Mapping

import pytest
import timm
import torch
import torchvision
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.vgg import cfgs, make_layers

from visionapps.errors import ConfigError
from visionapps.networks import (
    alexnet,
    bn_inception,
    enet,
    googlenet,
    lenet,
    mobilenet,
    nin,
    overfeat,
    plain,
    published,
    vgg,
    vit,
    zfnet,
)
from visionapps.networks.base import Network
from visionapps.networks.chain import Chain
from visionapps.networks.layers import response_norm

BUILDERS: Mapping[str, Callable[..., Chain]] = {
    build.__name__: build
    for build in (
        *(lenet.lenet5, lenet.lenet5_plain, alexnet.alexnet, alexnet.alexnet_one_tower, zfnet.zfnet, nin.nin),
        *(overfeat.overfeat_fast, overfeat.overfeat_accurate, bn_inception.bn_inception),
        *(vgg.vgg_a, vgg.vgg_a_lrn, vgg.vgg_b, vgg.vgg_c, vgg.vgg_d, vgg.vgg_e),
        *(googlenet.googlenet, googlenet.googlenet_auxiliary, googlenet.googlenet_naive, plain.plain18, plain.plain34),
        *(mobilenet.mobilenet_v1, mobilenet.conv_mobilenet, published.resnet50, published.resnet101),
        *(published.resnet152, published.resnet200, published.resnext101_2x64d, published.resnet101_1x100d),
        *(published.densenet264, published.inception_resnet_v2, enet.enet),
        *(getattr(vit, f"vit_{stem}_{size}gf") for stem in "pc" for size in (1, 4, 18, 36)),
    )
}


def on_meta(build: Callable[..., Network], **arguments: int) -> Network:
    with torch.device("meta"):
        return build(**arguments).eval()


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def rows(
    network: Network, bands: int = 3, side: int | None = None
) -> Iterator[tuple[str, nn.Module, tuple[int, ...], float]]:
    """Every step with the size of its map and its multiply-adds."""
    side = side or network.native
    image = torch.zeros(1, bands, side, side, device="meta")
    for name, step in network.features.named_children():
        with FlopCounterMode(display=False) as counter:
            image = step(image)
        yield name, step, tuple(image.shape[1:]), counter.get_total_flops() / 2


def sizes(network: Network, names: str, bands: int = 3) -> list[tuple[int, ...]]:
    found = {name: size for name, _, size, _ in rows(network, bands)}
    return [found[name] for name in names.split()]


def depth(network: Network, *, pools: bool = False) -> int:
    """Layers with weights on the longest path, by torch.fx; with poolings too where wanted."""
    counted: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear)
    if pools:
        counted += (nn.MaxPool2d, nn.AvgPool2d)
    traced = fx.symbolic_trace(nn.Sequential(network.features))
    longest: dict[fx.Node, int] = {}
    for node in traced.graph.nodes:
        own = node.op == "call_module" and isinstance(traced.get_submodule(node.target), counted)
        longest[node] = int(own) + max((longest[each] for each in node.all_input_nodes), default=0)
    head = sum(isinstance(layer, nn.Linear) for layer in network.head.modules())
    return max(longest.values()) + head


def copy_in_order(target: nn.Module, source: nn.Module) -> None:
    """Weights and statistics of layers of equal kinds in equal order."""
    own, other = target.state_dict(), source.state_dict()
    assert [tuple(value.shape) for value in own.values()] == [tuple(value.shape) for value in other.values()]
    target.load_state_dict(dict(zip(own, other.values(), strict=True)))


def shaken(module: nn.Module) -> nn.Module:
    """Statistics and slopes of every normalisation drawn, so that forgetting one is seen; in evaluation."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.2)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
    return module.eval()


def agree(ours: Tensor, reference: Tensor) -> None:
    assert reference.std() > 1e-4 * reference.abs().max() > 0  # else any two would agree
    torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4 * float(reference.detach().abs().max()))


# LeNet-5


def test_the_maps_of_lenet_have_the_sizes_of_its_figure():
    for build in (lenet.lenet5, lenet.lenet5_plain):
        assert sizes(on_meta(build), "c1 s2 c3 s4", bands=1) == [(6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5)]


def test_lenet_has_the_connections_that_the_paper_counts():
    network = on_meta(lenet.lenet5)
    counts: dict[str, int] = {}

    def count(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
            units = output.numel()
            if isinstance(module, nn.Conv2d):
                counts[name] = counts.get(name, 0) + units * (module.weight[0].numel() + 1)
            elif isinstance(module, lenet.Subsampling):
                counts[name] = units * (4 + 1)
            elif isinstance(module, lenet.RadialHead):
                counts["output"] = module.codes.numel()

        return hook

    for path, module in network.named_modules():
        place = path.removeprefix("features.").split(".")[0] if path.startswith("features.") else path
        module.register_forward_hook(count(place))
    network(torch.zeros(1, 1, 32, 32, device="meta"))

    assert counts == {
        "c1": 122304,
        "s2": 5880,
        "c3": 151600,
        "s4": 2000,
        "head.layers.0": 48120,
        "head.layers.2": 10164,
        "output": 840,
    }
    assert sum(counts.values()) == 340908
    trained = {name: parameters(module) for name, module in network.features.named_children() if parameters(module)}
    assert trained == {"c1": 156, "s2": 12, "c3": 1516, "s4": 32}


def test_c3_sees_what_the_table_of_the_paper_marks():
    lines = """
    X...XXX..XXXX.XX
    XX...XXX..XXXX.X
    XXX...XXX..X.XXX
    .XXX..XXXX..X.XX
    ..XXX..XXXX.XX.X
    ...XXX..XXXX.XXX
    """
    table = lines.split()  # a line per map of S2, a column per map of C3
    image = torch.randn(2, 6, 9, 9)
    c3 = lenet.PartialConnections()
    weight, bias = torch.zeros(16, 6, 5, 5), torch.cat([conv.bias for conv in c3.convs])
    for column, own in enumerate(w for conv in c3.convs for w in conv.weight):
        seen = [line for line in range(6) if table[line][column] == "X"]
        assert len(seen) == len(own)
        # In the group of the first six, maps 4 and 5 begin with the last of theirs: the order of the lists of C3.
        group, place = (0, column) if column < 6 else (1, column - 6) if column < 15 else (2, 0)
        for kernel, line in zip(own, lenet._SEEN[group][place], strict=True):
            assert line in seen
            weight[column, line] = kernel
    torch.testing.assert_close(c3(image), F.conv2d(image, weight, bias))


def test_an_output_of_lenet_is_minus_the_distance_to_the_picture_of_its_digit():
    network = lenet.lenet5().eval()
    head = network.head
    assert isinstance(head, lenet.RadialHead)
    assert len({tuple(code.tolist()) for code in head.codes}) == 10
    assert set(head.codes.unique().tolist()) == {-1.0, 1.0}
    map_ = torch.randn(3, 16, 5, 5)
    with torch.no_grad():
        seen = head.layers(map_).flatten(1)
        expected = torch.stack([-(torch.cdist(row[None], head.codes)[0] ** 2) for row in seen])
        torch.testing.assert_close(head(map_), expected, rtol=1e-4, atol=1e-3)


def test_codes_of_other_class_counts_do_not_depend_on_the_seed():
    torch.manual_seed(1)
    first = lenet.lenet5(num_classes=26).head.codes
    torch.manual_seed(2)
    assert torch.equal(first, lenet.lenet5(num_classes=26).head.codes)
    assert len({tuple(code.tolist()) for code in first}) == 26


def test_the_squash_of_lenet_keeps_one_and_a_subsampling_sums():
    torch.testing.assert_close(
        lenet.Squash()(torch.tensor([-1.0, 0.0, 1.0])), torch.tensor([-1.0, 0, 1]), atol=1e-4, rtol=0
    )
    layer = lenet.Subsampling(2)
    with torch.no_grad():
        layer.coefficient.copy_(torch.tensor([1.0, -0.5]).view(2, 1, 1))
        layer.bias.copy_(torch.tensor([0.25, 3.0]).view(2, 1, 1))
    image = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]).expand(1, 2, 2, 4)
    assert layer(image).tolist() == [[[[14.25, 22.25]], [[-4.0, -8.0]]]]


def test_the_head_of_lenet_slides_over_a_larger_image():
    network = lenet.lenet5().eval()
    image = torch.randn(1, 1, 36, 36)
    dense = network.head.dense()(network.features(image))
    assert dense.shape == (1, 10, 2, 2)
    for row in range(2):
        for col in range(2):
            crop = image[..., 4 * row : 4 * row + 32, 4 * col : 4 * col + 32]
            torch.testing.assert_close(dense[..., row, col], network(crop), rtol=1e-4, atol=1e-3)
    with pytest.raises(
        ConfigError, match=re.escape("made for maps of 16x5x5 (DxHxW), got 16x6x6; give images of 32x32")
    ):
        network(image)


# AlexNet and its first followers


def test_the_maps_of_alexnet_have_the_sizes_of_the_lecture():
    network = on_meta(alexnet.alexnet_one_tower)
    assert sizes(network, "conv1 pool1 norm1 conv2 pool2 conv3 conv4 conv5 pool5") == [
        *((96, 55, 55), (96, 27, 27), (96, 55, 55), (256, 27, 27), (256, 13, 13)),
        *((384, 13, 13), (384, 13, 13), (256, 13, 13), (256, 6, 6)),
    ]
    assert network.features.conv1.weight.numel() == 34848


def test_the_towers_of_alexnet_meet_in_the_third_convolution_only():
    network = on_meta(alexnet.alexnet).features[:5].to_empty(device="cpu")
    nn.init.normal_(network.conv2.weight)
    maps = torch.randn(1, 96, 9, 9, requires_grad=True)
    network.conv2(maps)[:, :128].sum().backward()
    assert maps.grad is not None
    assert maps.grad[:, :48].abs().min() > 0 == maps.grad[:, 48:].abs().max()
    groups = [layer.groups for layer in on_meta(alexnet.alexnet).features if isinstance(layer, nn.Conv2d)]
    assert groups == [1, 2, 1, 2, 2]


def test_response_normalisation_is_the_formula_of_the_paper():
    maps = 20 * torch.randn(1, 7, 2, 3)
    expected = torch.empty_like(maps)
    for i in range(7):
        squares = sum(maps[:, j] ** 2 for j in range(max(0, i - 2), min(6, i + 2) + 1))
        expected[:, i] = maps[:, i] / (2 + 1e-4 * squares) ** 0.75
    torch.testing.assert_close(response_norm()(maps), expected)


def test_the_maps_of_zfnet_have_the_sizes_of_its_figure():
    assert sizes(on_meta(zfnet.zfnet), "conv1 pool1 conv2 pool2 conv5 pool5") == [
        *((96, 110, 110), (96, 55, 55), (256, 26, 26), (256, 13, 13), (256, 13, 13), (256, 6, 6)),
    ]


def test_the_maps_of_overfeat_have_the_sizes_of_its_tables():
    fast, accurate = on_meta(overfeat.overfeat_fast), on_meta(overfeat.overfeat_accurate)
    assert [size[1] for size in sizes(fast, "conv1 pool1 conv2 pool2 conv5 pool5")] == [56, 28, 24, 12, 12, 6]
    assert [size[1] for size in sizes(accurate, "conv1 pool1 conv2 pool2 conv6 pool6")] == [108, 36, 30, 15, 15, 5]
    # the tables' weights in millions, rounded: 145 and 144
    assert (parameters(fast) // 10**6, parameters(accurate) // 10**6) == (145, 144)


def test_nin_averages_one_map_per_class():
    network = nin.nin(num_classes=4).eval()
    assert sizes(on_meta(nin.nin), "conv1 pool1 conv2 pool2 conv3 pool3") == [
        *((96, 54, 54), (96, 27, 27), (256, 27, 27), (256, 13, 13), (384, 13, 13), (384, 6, 6)),
    ]
    maps = torch.randn(2, 1024, 3, 3)
    torch.testing.assert_close(network.head(maps), network.head.dense()(maps).mean((2, 3)))
    assert not any(isinstance(layer, nn.Linear) for layer in network.modules())


# VGG


@pytest.mark.parametrize(("column", "weights"), [("a", 11), ("a_lrn", 11), ("b", 13), ("c", 16), ("d", 16), ("e", 19)])
def test_vgg_has_the_depth_that_names_it(column, weights):
    network = on_meta(getattr(vgg, f"vgg_{column}"))
    assert depth(network) == weights
    ones = [layer for layer in network.features if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)]
    assert len(ones) == (3 if column == "c" else 0)
    assert hasattr(network.features, "norm1") == (column == "a_lrn")


@pytest.mark.parametrize("column", "abde")
def test_vgg_computes_what_torchvision_computes(column):
    reference = make_layers(cfgs[column.upper()])
    ours = on_meta(getattr(vgg, f"vgg_{column}")).features.to_empty(device="cpu")
    copy_in_order(ours, reference)
    image = torch.randn(1, 3, 40, 33)
    agree(ours(image), reference(image))


def test_memory_and_weights_of_vgg_16_row_by_row():
    network = on_meta(vgg.vgg_d)
    read = [(name, step, size) for name, step, size, _ in rows(network) if not isinstance(step, nn.ReLU)]
    memory = {name: int(torch.Size(size).numel()) for name, _, size in read}
    weights = {name: step.weight.numel() for name, step, _ in read if isinstance(step, nn.Conv2d)}
    linear = [layer.weight.numel() for layer in network.head.modules() if isinstance(layer, nn.Linear)]

    assert memory["conv1_1"] == memory["conv1_2"] == 3211264
    assert (memory["pool1"], memory["conv2_1"], memory["pool2"]) == (802816, 1605632, 401408)
    assert (memory["conv3_1"], memory["pool3"], memory["conv4_1"]) == (802816, 200704, 401408)
    assert (memory["pool4"], memory["conv5_1"], memory["pool5"]) == (100352, 100352, 25088)
    assert [weights[name] for name in ("conv1_1", "conv1_2", "conv2_1", "conv2_2")] == [1728, 36864, 73728, 147456]
    assert [weights[name] for name in ("conv3_1", "conv3_2", "conv4_1", "conv4_2")] == [
        294912,
        589824,
        1179648,
        2359296,
    ]
    assert linear == [102760448, 16777216, 4096000]
    # What the rows of the lecture sum to; its own sums, 24 million numbers and 128 million weights, are wrong.
    assert 224 * 224 * 3 + sum(memory.values()) + 4096 + 4096 + 1000 == 15237608
    assert sum(weights.values()) + sum(linear) == 138344128


def test_a_deep_vgg_begins_with_the_first_and_last_layers_of_a_shallow_one():
    shallow, deep = (vgg.VGG(column, 3, 4, hidden=(8, 6)) for column in "ad")
    before = {name: value.clone() for name, value in deep.state_dict().items()}
    deep.initialise_from(shallow)
    copied = {name for name, value in deep.state_dict().items() if not torch.equal(value, before[name])}
    layers = ("conv1_1", "conv2_1", "conv3_1", "conv3_2")
    expected = {f"features.{name}.weight" for name in layers}  # biases were and are 0
    expected |= {name for name in before if name.startswith("head") and name.endswith("weight")}
    assert copied == expected
    assert len(copied) == 7
    for name in copied:
        assert torch.equal(deep.state_dict()[name], shallow.state_dict()[name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 1), "vgg_d: conv1_1 has weights of shape (64, 3, 3, 3), that of vgg_a (64, 1, 3, 3); build both with"),
        ((5, 3), "fully connected layer 3 has weights of shape (3, 6), that of vgg_a (5, 6)"),
    ],
)
def test_a_shallow_vgg_of_other_bands_or_classes_is_refused(arguments, message):
    with torch.device("meta"):
        shallow, deep = vgg.VGG("a", *arguments, hidden=(8, 6)), vgg.VGG("d", 3, 3, hidden=(8, 6))
        longer = vgg.VGG("a", 3, 3, hidden=(8,))
    with pytest.raises(ConfigError, match=re.escape(message)):
        deep.initialise_from(shallow)
    with pytest.raises(ConfigError, match="has 3 fully connected layers, vgg_a 2"):
        deep.initialise_from(longer)


# GoogLeNet and what came of it

# Table 1: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj; then thousands of weights (of 1024) and millions of
# operations where the table is right, and None where it is not.
GOOGLENET = """
3a 64 96 128 16 32 32 159 128
3b 128 128 192 32 96 64 380 304
4a 192 96 208 16 48 64 364 73
4b 160 112 224 24 64 64 437 88
4c 128 128 256 24 64 64 None 100
4d 112 144 288 32 64 64 580 119
4e 256 160 320 32 128 128 840 170
5a 256 160 320 32 128 128 None None
5b 384 192 384 48 128 128 1388 71
"""


def test_the_rows_of_googlenet_cost_what_its_table_says_where_that_is_right():
    network = on_meta(googlenet.googlenet)
    found = {name: (parameters(step), macs, size) for name, step, size, macs in rows(network)}
    channels = 192
    for line in GOOGLENET.strip().splitlines():
        name, *numbers = line.split()
        a, b, c, d, e, f = map(int, numbers[:6])
        weights = channels * (a + b + d + f) + 9 * b * c + 25 * d * e
        biases = a + b + c + d + e + f
        count, macs, size = found[f"inception{name}"]
        assert count == weights + biases
        assert macs == weights * size[1] * size[2]
        assert size[0] == a + c + e + f
        printed, operations = numbers[6:]
        assert printed == "None" or weights / 1024 == pytest.approx(int(printed), rel=0.02)
        assert operations == "None" or macs / 1e6 == pytest.approx(int(operations), rel=0.03)
        channels = size[0]
    assert (found["conv1"][1], found["conv2_reduce"][1] + found["conv2"][1]) == (118013952, 359661568)
    assert [found[name][2] for name in ("pool1", "pool2", "pool3", "pool4")] == [
        *((64, 56, 56), (192, 28, 28), (480, 14, 14), (832, 7, 7))
    ]
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())


def test_googlenet_is_22_layers_deep_and_27_with_its_poolings():
    network = on_meta(googlenet.googlenet)
    assert depth(network) == 22
    assert depth(network, pools=True) + 1 == 27  # the head averages without a layer of that kind


def test_reductions_make_a_module_of_googlenet_cheap():
    costs = []
    for naive in (False, True):
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            module = googlenet.Inception(192, (64, 96, 128, 16, 32, 32), naive=naive)
            assert module(torch.zeros(1, 192, 28, 28)).shape[1] == module.channels == (416 if naive else 256)
        costs.append(round(counter.get_total_flops() / 2e6))
    assert costs == [128, 303]


def test_a_module_of_googlenet_joins_its_branches_in_the_order_of_the_paper():
    module = googlenet.Inception(3, (2, 3, 4, 2, 5, 1)).eval()
    image = torch.randn(1, 3, 6, 6)
    convs = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]

    def conv(place: int, x: Tensor) -> Tensor:
        layer = convs[place]
        return F.relu(F.conv2d(x, layer.weight, layer.bias, padding=layer.kernel_size[0] // 2))

    pooled = F.max_pool2d(F.pad(image, (1, 1, 1, 1), value=-torch.inf), 3, stride=1)
    expected = [conv(0, image), conv(2, conv(1, image)), conv(4, conv(3, image)), conv(5, pooled)]
    torch.testing.assert_close(module(image), torch.cat(expected, 1))


def test_auxiliary_classifiers_of_googlenet_train_and_are_not_asked():
    network = on_meta(googlenet.googlenet_auxiliary, num_classes=7)
    image = torch.zeros(2, 3, 224, 224, device="meta")
    outputs = network.outputs(image)
    assert [tuple(logits.shape) for logits in outputs.logits] == [(2, 7)] * 3
    assert network.auxiliary == (0.3, 0.3)
    assert parameters(network) - parameters(on_meta(googlenet.googlenet, num_classes=7)) == parameters(
        network.auxiliaries
    )
    for side, fits in ((222, False), (223, True), (238, True), (239, False)):
        image = torch.zeros(1, 3, 224, side, device="meta")
        if fits:
            assert len(network.outputs(image).logits) == 3
            continue
        wrong = 13 if side < 224 else 15
        with pytest.raises(ConfigError, match=f"made for maps of 14x14, got 14x{wrong}; train on crops of 224x224"):
            network.outputs(image)


def test_the_first_output_of_googlenet_is_its_answer_and_the_others_are_of_4a_and_4d():
    torch.manual_seed(0)
    network = googlenet.googlenet_auxiliary(num_classes=4).eval()
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        outputs = network.outputs(image)
        agree(outputs.logits[0], network(image))
        for step, logits in zip(("inception4a", "inception4d"), outputs.logits[1:], strict=True):
            end = [name for name, _ in network.features.named_children()].index(step) + 1
            head = network.auxiliaries[step]
            pooled = F.avg_pool2d(network.features[:end](image), 5, 3)
            reduced = F.relu(F.conv2d(pooled, head.reduce[1].weight, head.reduce[1].bias)).flatten(1)
            hidden = F.relu(F.linear(reduced, head.layers[1].weight, head.layers[1].bias))
            agree(logits, F.linear(hidden, head.layers[4].weight, head.layers[4].bias))


def test_bn_inception_has_the_maps_of_its_figure_and_the_published_count_with_biases():
    network = on_meta(bn_inception.bn_inception)
    found = {name: size for name, _, size, _ in rows(network)}
    assert [found[f"inception{name}"][0] for name in ("3a", "3b", "3c", "4a", "4b")] == [256, 320, 576, 576, 576]
    assert [found[f"inception{name}"] for name in ("4d", "4e", "5b")] == [(608, 14, 14), (1056, 7, 7), (1024, 7, 7)]
    biases = sum(layer.out_channels for layer in network.modules() if isinstance(layer, nn.Conv2d))
    assert parameters(network) + biases == 11295240
    assert not any(layer.kernel_size == (5, 5) for layer in network.modules() if isinstance(layer, nn.Conv2d))


def test_inception_resnet_v2_is_as_deep_as_the_blocks_of_the_paper_sum_to():
    network = on_meta(published.inception_resnet_v2)
    assert [len(network.features.get_submodule(name)) for name in ("repeat", "repeat_1", "repeat_2")] == [5, 10, 4]
    assert depth(network) == 9 + 5 * 4 + 3 + 10 * 4 + 3 + 5 * 4 + 1


# Plain and residual


class Unlinked(BasicBlock):
    """torchvision's block without its shortcut."""

    def forward(self, image: Tensor) -> Tensor:
        first = self.relu(self.bn1(self.conv1(image)))
        return self.relu(self.bn2(self.conv2(first)))


def test_a_plain_network_is_a_residual_one_without_shortcuts():
    reference = ResNet(Unlinked, [2, 2, 2, 2], num_classes=5)
    projections = sum(
        parameters(block.downsample) for block in reference.modules() if getattr(block, "downsample", None)
    )
    for block in reference.modules():
        if isinstance(block, Unlinked):
            block.downsample = None
    shaken(reference)
    ours = plain.plain18(num_classes=5).eval()
    copy_in_order(ours, reference)
    image = torch.randn(2, 3, 50, 40)
    agree(ours(image), reference(image))
    assert projections == 173824
    assert depth(on_meta(plain.plain34)) == 34


def test_resnet_50_differs_from_torchvision_in_the_place_of_the_stride_only():
    reference = shaken(torchvision.models.resnet50(num_classes=3))
    ours = on_meta(published.resnet50, num_classes=3).to_empty(device="cpu").eval()
    state = {
        (name.replace("fc.", "head.linear.") if name.startswith("fc.") else f"features.{name}"): value
        for name, value in reference.state_dict().items()
    }
    ours.load_state_dict(state)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = reference(image)
        assert not torch.allclose(ours(image), expected, rtol=1e-2)
        for layer in (ours.features.layer2, ours.features.layer3, ours.features.layer4):
            assert (layer[0].conv1.stride, layer[0].conv2.stride) == ((2, 2), (1, 1))
            layer[0].conv1.stride, layer[0].conv2.stride = (1, 1), (2, 2)
        agree(ours(image), expected)


def test_resnet_200_normalises_before_each_convolution():
    network = on_meta(published.resnet200)
    convs = [
        name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d) and "downsample" not in name
    ]
    assert len(convs) + 1 == 200
    blocks = [len(network.features.get_submodule(f"stage{i}").blocks) for i in range(4)]
    assert blocks == [3, 24, 36, 3]
    # Bottlenecks by hand: stem, blocks with their normalisations before, projections, last normalisation, classifier.
    count, channels = 3 * 49 * 64, 64
    for stage, repeats in enumerate(blocks):
        inner, outer = 64 * 2**stage, 256 * 2**stage
        for place in range(repeats):
            count += 2 * channels + channels * inner + 2 * inner + 9 * inner**2 + 2 * inner + inner * outer
            count += channels * outer if place == 0 else 0
            channels = outer
    assert parameters(network) == count + 2 * channels + channels * 1000 + 1000


def test_densenet_264_has_the_blocks_of_its_table():
    network = on_meta(published.densenet264)
    assert depth(network) == 265  # not the 264 of its name: 1 + 2 (6 + 12 + 64 + 48) + 3 + 1
    assert [len(network.features.get_submodule(f"denseblock{i}")) for i in range(1, 5)] == [6, 12, 64, 48]
    assert sizes(network, "pool0 transition1 transition2 transition3 relu5") == [
        *((64, 56, 56), (128, 28, 28), (256, 14, 14), (1152, 7, 7), (2688, 7, 7))
    ]


def test_the_wider_networks_of_the_resnext_table_have_the_widths_of_their_names():
    grouped, wide = on_meta(published.resnext101_2x64d), on_meta(published.resnet101_1x100d)
    first, second = grouped.features.layer1[0].conv2, wide.features.layer1[0].conv2
    assert (first.groups, first.out_channels) == (2, 128)
    assert (second.groups, second.out_channels) == (1, 100)


# MobileNet and transformers


def test_mobilenet_computes_what_timm_computes():
    reference = shaken(timm.create_model("mobilenetv1_100", num_classes=3, act_layer=nn.ReLU))
    ours = mobilenet.mobilenet_v1(num_classes=3).eval()
    copy_in_order(ours, reference)
    image = torch.randn(2, 3, 70, 64)
    agree(ours(image), reference(image))


def test_the_flag_of_mobilenet_changes_what_a_unit_costs():
    cheap, full = on_meta(mobilenet.mobilenet_v1), on_meta(mobilenet.conv_mobilenet)
    weights = [
        sum(layer.weight.numel() for layer in network.features.unit7.modules() if isinstance(layer, nn.Conv2d))
        for network in (cheap, full)
    ]
    assert weights == [9 * 512 + 512**2, 9 * 512**2]


def test_a_transformer_on_patches_is_timms():
    torch.manual_seed(0)
    reference = timm.models.VisionTransformer(
        img_size=64,
        patch_size=16,
        embed_dim=12,
        depth=2,
        num_heads=3,
        mlp_ratio=3.0,
        num_classes=5,
        dynamic_img_size=True,
    ).eval()
    nn.init.normal_(reference.cls_token)
    ours = vit.VisionTransformer("tiny", vit.Form(12, 2, 3, 3.0), 5, 3, native=64).eval()
    names = {
        "cls_token": "features.encoder.class_token",
        "pos_embed": "features.encoder.position",
        "patch_embed.proj": "features.stem.0",
        "norm": "features.encoder.norm",
        "head": "head.linear",
    }

    def renamed(name: str) -> str:
        if name.startswith("blocks"):
            return f"features.encoder.{name}"
        return next(new + name[len(old) :] for old, new in names.items() if name == old or name.startswith(f"{old}."))

    ours.load_state_dict({renamed(name): value for name, value in reference.state_dict().items()})
    for size in ((64, 64), (96, 48)):
        image = torch.randn(2, 3, *size)
        agree(ours(image), reference(image))
        patches = reference.forward_features(image)[:, 1:]
        agree(ours.features(image).flatten(2).transpose(1, 2), patches)


def test_the_stem_of_a_convolutional_transformer_is_torchvisions():
    stem = [
        torchvision.models.vision_transformer.ConvStemConfig(width, 3, stride)
        for width, stride in zip((4, 6, 6, 8, 10), (2, 2, 1, 2, 2), strict=True)
    ]
    reference = torchvision.models.VisionTransformer(
        32, 16, num_layers=1, num_heads=3, hidden_dim=12, mlp_dim=48, num_classes=2, conv_stem_configs=stem
    )
    form = vit.Form(12, 1, 3, 4.0, (4, 6, 6, 8, 10), (2, 2, 1, 2, 2))
    ours = vit.VisionTransformer("tiny", form, 2, 3, native=32).eval()
    copy_in_order(ours.features.stem, reference.conv_proj)
    shaken(reference.conv_proj)
    copy_in_order(ours.features.stem, reference.conv_proj)
    image = torch.randn(1, 3, 48, 32)
    agree(ours.features.stem(image), reference.conv_proj(image))
    assert parameters(ours) == parameters(reference)


@pytest.mark.parametrize(
    ("form", "native", "message"),
    [
        (vit.Form(12, 1, 5), 32, "tiny: 5 heads do not divide 12 channels"),
        (vit.Form(12, 1, 3), 40, "tiny: native is 40; choose a multiple of 16 pixels"),
        (
            vit.Form(12, 1, 3, 4.0, (8, 8)),
            32,
            "tiny: stem of 2 convolutions with strides [2, 2]; give one stride for each",
        ),
    ],
)
def test_an_impossible_transformer_is_refused(form, native, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        vit.VisionTransformer("tiny", form, 2, 3, native=native)


# All of them, but for some that differ from another in depth only

SLOW = ("resnet101", "resnet152", "resnet200", "resnext101_2x64d", "resnet101_1x100d", "densenet264", "plain34")


@pytest.mark.parametrize("name", [name for name in BUILDERS if name not in SLOW])
def test_bands_and_classes_are_free_and_the_smallest_legal_size_is_true(name):
    network = on_meta(BUILDERS[name], num_classes=7, bands=5)
    least = network.least
    with torch.device("meta"):
        assert min(network.features(torch.zeros(1, 5, least, least + 1)).shape[2:]) >= 1
        assert network.head(_last_map(network)).shape == (1, 7)
        if least > 1:
            with pytest.raises(RuntimeError):
                network.features(torch.zeros(1, 5, least - 1, least))
            message = f"{name}: the image has {least - 1}x{least} pixels (HxW), but the smallest legal size is {least}x"
            with pytest.raises(ConfigError, match=re.escape(message)):
                network(torch.zeros(1, 5, least - 1, least))
    assert network.name == name


def _last_map(network: Chain) -> Tensor:
    """A map as the native size gives it, without computing it where the head says which."""
    shape = getattr(network.head, "shape", None)
    if shape is None:
        linear = getattr(network.head, "linear", None)
        channels = linear.in_features if linear is not None else {"nin": 1024}.get(network.name, 16)
        shape = (channels, 5, 5)
    return torch.zeros(1, *shape)


@pytest.mark.parametrize("name", ["lenet5", "googlenet_auxiliary", "mobilenet_v1", "enet", "vit_c_1gf"])
def test_every_parameter_learns(name):
    network = BUILDERS[name](num_classes=2, bands=3).train()
    side = {"lenet5": 32, "googlenet_auxiliary": 224}.get(name, 64)
    outputs = network.outputs(torch.randn(2, 3, side, side))
    loss = sum(F.cross_entropy(logits, torch.tensor([0, 1])) for logits in outputs.logits) + outputs.penalty
    loss.backward()
    lost = [key for key, value in network.named_parameters() if value.grad is None or not value.grad.isfinite().all()]
    assert not lost
