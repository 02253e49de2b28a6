"""Packed weights: Huffman's code against entropy, every tensor back bit by bit, damage named, old readers refused."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from visionapps.errors import WeightsError
from visionapps.inference.bundle import Bundle, load
from visionapps.inference.huffman import code_lengths, code_words, decode, encode
from visionapps.inference.packed import Ledger, ledger, pack, pack_state, unpack, unpack_state
from visionapps.models import unet
from visionapps.structures import LabelSpace


def test_the_textbook_example_has_the_textbook_words() -> None:
    # Cormen et al., figure 16.5: 45 13 12 16 9 5 thousand letters take 224,000 bits.
    counts = np.array([45, 13, 12, 16, 9, 5])
    lengths = code_lengths(counts)
    assert lengths.tolist() == [1, 3, 3, 3, 4, 4]
    assert int(counts @ lengths) == 224
    assert [f"{w:0{n}b}" for w, n in zip(code_words(lengths).tolist(), lengths, strict=True)] == [
        "0", "100", "101", "110", "1110", "1111",
    ]  # fmt: skip
    assert encode(np.array([0, 5, 1], np.uint8), lengths).tolist() == [0b01111100]


@given(st.lists(st.integers(0, 255), min_size=2, max_size=300).filter(lambda s: len(set(s)) > 1))
@settings(max_examples=40, deadline=None)
def test_messages_come_back_and_take_less_than_a_bit_per_symbol_over_entropy(symbols: list[int]) -> None:
    message = np.array(symbols, np.uint8)
    counts = np.bincount(message)
    lengths = code_lengths(counts)
    words = [f"{w:0{n}b}" for w, n in zip(code_words(lengths).tolist(), lengths.tolist(), strict=True) if n]
    assert not any(a != b and b.startswith(a) for a in words for b in words)  # no word begins another
    stream = encode(message, lengths)
    assert decode(stream, lengths, len(message)).tolist() == symbols
    shares = counts[counts > 0] / counts.sum()
    entropy = -float((shares * np.log2(shares)).sum())
    bits = int(counts @ lengths[: len(counts)])
    assert entropy * len(message) - 1e-6 <= bits < (entropy + 1) * len(message)
    assert len(stream) == math.ceil(bits / 8)


def test_streams_that_are_no_messages_are_refused() -> None:
    lengths = np.array([1, 2, 2], np.uint8)
    with pytest.raises(ValueError, match="ends too early"):
        decode(np.array([0xFF], np.uint8), lengths, 6)
    with pytest.raises(ValueError, match="cannot hold 9 symbols"):
        decode(np.array([0], np.uint8), lengths, 9)
    with pytest.raises(ValueError, match="lengths that no code has"):
        decode(np.array([0], np.uint8), np.array([1, 1, 1], np.uint8), 1)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    kind = torch.int32 if a.element_size() == 4 else torch.int16
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(kind), b.view(kind))


@given(
    seed=st.integers(0, 2**31),
    shape=st.sampled_from([(16,), (40, 9), (8, 4, 3, 3), (3, 1000)]),
    zeros=st.sampled_from([0.0, 0.5, 0.95, 0.9995, 1.0]),
    values=st.sampled_from([None, 1, 2, 5, 256, 300]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
@settings(max_examples=60, deadline=None)
def test_every_tensor_comes_back_bit_by_bit(
    seed: int, shape: tuple[int, ...], zeros: float, values: int | None, dtype: torch.dtype
) -> None:
    drawn = torch.Generator().manual_seed(seed)
    tensor = torch.randn(shape, generator=drawn)
    if values is not None:
        table = torch.randn(values, generator=drawn)
        table[0] = -0.0 if seed % 2 else float("nan")  # bits of their own
        tensor = table[torch.randint(values, shape, generator=drawn)]
    tensor[torch.rand(shape, generator=drawn) < zeros] = 0
    tensor = tensor.to(dtype)
    small = pack(tensor)
    stages = ledger(tensor)
    assert stages.dense == tensor.numel() * tensor.element_size()
    assert stages.dense >= stages.sparse >= stages.shared
    if small is None:
        assert stages.coded == stages.dense
        assert tensor.numel() < 100 or (values in (None, 256, 300) and zeros < 0.95)
    else:
        assert stages.coded == small.numel() < stages.dense
        assert same_bits(unpack(small), tensor)


def test_binary_weights_with_a_scale_for_each_filter_take_little_more_than_a_bit() -> None:
    torch.manual_seed(0)
    weight = torch.rand(512, 1, 1, 1) * torch.randn(512, 64, 3, 3).sign()
    small = pack(weight)
    assert small is not None
    assert len(weight.unique()) > 256
    assert 8 * small.numel() / weight.numel() < 1.13  # 64 bits for the two values of 576 weights
    assert same_bits(unpack(small), weight)


def test_the_stages_of_a_pruned_and_shared_tensor_are_those_counted_by_hand() -> None:
    weight = torch.zeros(1000)
    weight[::10] = torch.tensor([1.0, 2.0, 3.0, 4.0]).repeat(25)
    # 100 entries: 4 bytes each and a gap byte each; then 2 bits each, 4 values of 4 bytes, the gaps.
    assert ledger(weight)[:3] == (4000, 500, 16 + 25 + 100)
    assert Ledger(1, 2, 3, 4) + Ledger(1, 1, 1, 1) == (2, 3, 4, 5)


def test_damaged_bytes_are_refused() -> None:
    small = pack(torch.zeros(100))
    assert small is not None
    wrong = small.clone()
    wrong[5] ^= 1
    for damaged in (wrong, small[:-3], small[:4]):
        with pytest.raises(ValueError, match="the checksum is wrong"):
            unpack(damaged)
    state, names = pack_state({"a": torch.zeros(100), "b": torch.arange(100.0), "c": torch.ones(50, dtype=torch.int64)})
    assert names == ("a",)
    assert torch.equal(unpack_state(state, names)["a"], torch.zeros(100))
    with pytest.raises(ValueError, match="a is not there"):
        unpack_state({}, names)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    torch.manual_seed(0)
    model = unet("resnet10t", 3, channels=(8, 8, 8, 8, 8)).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.copy_((module.weight * 40).round() / 40)
    return Bundle(model, LabelSpace.named(["roof", "road", "tree"]), 64)


def test_a_packed_bundle_is_smaller_and_loads_bit_by_bit(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save(tmp_path / "plain")
    replace(bundle, packed=True).save(tmp_path / "packed")
    plain, packed = ((tmp_path / name / "weights.safetensors").stat().st_size for name in ("plain", "packed"))
    assert packed < 0.25 * plain
    again = load(tmp_path / "packed")
    assert again.packed
    assert not load(tmp_path / "plain").packed
    for name, tensor in bundle.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    again.save(tmp_path / "again")  # it stays packed
    assert (tmp_path / "again" / "weights.safetensors").stat().st_size == packed


def test_older_versions_refuse_a_packed_bundle_by_its_format_and_damage_is_named(
    bundle: Bundle, tmp_path: Path
) -> None:
    replace(bundle, packed=True).save(tmp_path / "b")
    head = yaml.safe_load((tmp_path / "b" / "model.yaml").read_text())
    assert head["format"] == 2  # a reader of format 1 says: bundle format 2, but visionapps ... reads 1
    weights = tmp_path / "b" / "weights.safetensors"
    whole = bytearray(weights.read_bytes())
    whole[-2] ^= 0xFF
    small = min(len(t.shape) for t in load_file(weights).values())
    assert small <= 1
    for damaged in (whole, bytes(whole[:1000])):
        weights.write_bytes(damaged)
        with pytest.raises(WeightsError, match=r"weights.safetensors: damaged \(.*\); copy the bundle again"):
            load(tmp_path / "b")
