"""Simple pyramids of networks with one map: whole strides, any image size, the map of the network in the middle."""

import pytest
import timm
import torch

from visionapps.backbones import pyramid
from visionapps.backbones.simple_pyramid import LayerNorm2d, SimplePyramid, simple_levels
from visionapps.structures import InputSpec, Level
from visionapps.testing import check_backbone

EVERY = (2, 4, 8, 16, 32, 64)


@pytest.mark.parametrize(
    ("patch", "wanted", "strides"),
    [
        (16, (2, 4, 8, 16, 32), [4, 8, 16, 32]),
        (16, (16,), [16]),
        (14, (4, 8, 16, 32, 64), [7, 14, 28, 56]),  # 3.5 pixels are no stride
        (14, (7, 56), [7, 56]),
        (8, (2, 4, 8, 16, 32), [2, 4, 8, 16, 32]),
        (32, (4, 8, 16, 32), [8, 16, 32]),
        (7, EVERY, [7, 14, 28]),
        (16, (512,), []),
    ],
)
def test_strides_are_whole_octaves_of_the_patch_near_to_what_is_wanted(patch, wanted, strides):
    assert [level.stride for level in simple_levels(Level(patch, 64), wanted)] == strides


def test_finer_maps_have_fewer_channels():
    assert [tuple(level) for level in simple_levels(Level(16, 64), EVERY)] == [
        (4, 16),
        (8, 32),
        (16, 64),
        (32, 64),
        (64, 64),
    ]


@pytest.mark.parametrize(
    ("name", "strides", "count"),
    [
        ("vit_tiny_patch16_224", [4, 8, 16, 32], 4),
        ("vit_small_patch14_dinov2", [7, 14, 28], 3),  # made for 518 x 518, with position embeddings of that size
        ("deit_tiny_distilled_patch16_224", [4, 8, 16, 32], 1),
        ("test_vit", [4, 8, 16, 32], 2),
    ],
)
def test_transformers_take_images_of_any_size_and_number_of_bands(name, strides, count):
    spec = InputSpec(bands=tuple(f"b{i}" for i in range(count)), mean=(0.5,) * count, std=(0.25,) * count)
    backbone = pyramid(name, spec=spec)
    assert [level.stride for level in backbone.levels] == strides
    check_backbone(backbone)
    check_backbone(backbone, multiples=(1, 5))
    backbone.train()
    torch.stack([m.square().mean() for m in backbone(torch.rand(1, count, *(2 * [strides[-1] * 2])))]).sum().backward()
    assert [k for k, p in backbone.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_map_of_the_patches_is_the_networks_own_normalised(tmp_path):
    theirs = timm.create_model("test_vit", num_classes=10).eval()
    size = theirs.patch_embed.img_size[0]
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    ours = pyramid("test_vit", weights=str(tmp_path / "vit.pth"), strides=(8, 16, 32)).eval()
    ours.load_pretrained()
    image = torch.rand(1, 3, size, size)
    with torch.no_grad():
        last = theirs.forward_intermediates(image, intermediates_only=True, norm=False)[-1]
        _, own, coarse = ours(image)
    mean, variance = last.mean(1, keepdim=True), last.var(1, keepdim=True, unbiased=False)
    torch.testing.assert_close(own, (last - mean) / (variance + 1e-5).sqrt(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(coarse, torch.nn.functional.max_pool2d(own, 2))


def test_deconvolutions_do_not_move_the_map():
    level = Level(16, 8)
    simple = SimplePyramid(level, simple_levels(level, EVERY))
    image = torch.zeros(1, 8, 6, 6)
    image[0, :, 2, 3] = torch.arange(8.0)
    with torch.no_grad():
        quiet = simple(torch.zeros(1, 8, 6, 6))
        changed = [(a != b).any(1)[0].nonzero() for a, b in zip(simple(image), quiet, strict=True)]
    for stride, places in zip((4, 8, 16, 32, 64), changed, strict=True):
        first, last = places.amin(0) * stride, (places.amax(0) + 1) * stride
        # The pixels of the position that was changed, and no others but those of coarser cells.
        assert first[0] <= 32
        assert last[0] >= 48
        assert (last - first).tolist() == [max(16, stride)] * 2


def test_layer_norm_of_channels_keeps_the_memory_format():
    norm = LayerNorm2d(6)
    image = torch.randn(2, 6, 5, 7)
    expected = torch.stack([torch.nn.functional.layer_norm(p, (6,)) for p in image.permute(0, 2, 3, 1)])
    for layout in (torch.contiguous_format, torch.channels_last):
        got = norm(image.contiguous(memory_format=layout))
        torch.testing.assert_close(got, expected.permute(0, 3, 1, 2))
        assert got.is_contiguous(memory_format=layout)
