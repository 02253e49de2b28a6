"""Weights that are written in fewer bytes because few of them differ, or few are not zero; without any loss.

What a compressed model is on disk: where the entries of a tensor are zero, and which of a few values the others have,
both Huffman-coded, as in Han, Mao and Dally, Deep Compression, ICLR 2016 (sections 2 to 4). Nothing here changes a
weight: every tensor comes back bit by bit, and one that would not shrink stays as it is.

A packed tensor is one of bytes that describes itself:
    kind (1), dtype (1), dimensions (1), shape (4 each), entries that are stored (4),
    kind & SPARSE: the gaps between them: symbols (4), alphabet (2), its code lengths, bytes (4), the stream
    kind & CODED or ROWS: values (2), the values (for ROWS: of each row), code lengths, bytes (4), the stream
    else: the entries
    a checksum (4) of all that.
"""

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from visionapps.inference.huffman import code_lengths, decode, encode

SPARSE, CODED, ROWS = 1, 2, 4
_KINDS = (0, SPARSE, CODED, SPARSE | CODED, ROWS)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_BITS = (np.dtype("<i4"), np.dtype("<i2"), np.dtype("<i2"))  # floats are handled as bits, so that -0.0 and NaN stay
_MOST_VALUES = 256
_PER_ROW = 4  # values of a row: binary and ternary weights with a scale for each filter
_SKIP = 255  # a gap that is longer: so many zeros, and no entry after them
_LEAST_ZEROS = 0.3  # share from which gaps are worth trying


class Ledger(NamedTuple):
    """Bytes of weights, as every stage of Deep Compression would write them; each stage includes those before."""

    dense: int  # every entry with all its bits
    sparse: int  # entries that are not zero, and a byte for each gap between them
    shared: int  # instead of values whole bits that count in a table of values
    coded: int  # Huffman-coded: what is in the file

    def __add__(self, other: object) -> "Ledger":
        if not isinstance(other, Ledger):
            return NotImplemented
        return Ledger(*(a + b for a, b in zip(self, other, strict=True)))


def pack(tensor: Tensor) -> Tensor | None:
    """The tensor in fewer bytes, or None where there is no way; see the module.

    Args:
        tensor: of any shape.

    Returns:
        (bytes,) uint8.
    """
    entries = _as_bits(tensor)
    if entries is None or entries.size < 16:
        return None
    head = _head(tensor)
    found = [body for kind in _KINDS[1:] if (body := _body(entries, kind, tensor.shape)) is not None]
    best = min(found, key=len, default=b"")
    if not best or len(head) + len(best) + 4 >= entries.nbytes:
        return None
    # The kind stands first in a body; the head goes after it.
    whole = best[:1] + head + best[1:]
    return torch.frombuffer(bytearray(whole + struct.pack("<I", zlib.crc32(whole))), dtype=torch.uint8)


def unpack(packed: Tensor) -> Tensor:
    """What ``pack`` was given, bit by bit.

    Raises:
        ValueError: the bytes are damaged.
    """
    whole = packed.cpu().numpy().tobytes()
    if len(whole) < 8 or zlib.crc32(whole[:-4]) != struct.unpack("<I", whole[-4:])[0]:
        raise ValueError("packed weights: the checksum is wrong")
    try:
        return _unpacked(_Reader(whole[:-4]))
    except (struct.error, IndexError) as error:
        raise ValueError(f"packed weights: they end too early ({error})") from error


def pack_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Pack whatever shrinks; returns all tensors, and the names of those that are packed."""
    packed = {name: small for name, tensor in state.items() if (small := pack(tensor)) is not None}
    return {**state, **packed}, tuple(packed)


def unpack_state(state: Mapping[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    """All tensors as they were.

    Raises:
        ValueError: a packed tensor is missing or damaged.
    """
    if missing := [name for name in names if name not in state]:
        raise ValueError(f"packed weights: {missing[0]} is not there")
    return {**state, **{name: unpack(state[name]) for name in names}}


def ledger(tensor: Tensor) -> Ledger:
    """What the stages of compression write for a tensor; a stage that does not help counts as the one before."""
    dense = tensor.numel() * tensor.element_size()
    entries = _as_bits(tensor)
    packed = pack(tensor)
    if entries is None or packed is None:
        return Ledger(dense, dense, dense, dense)
    coded = packed.numel()
    kept = entries[entries != 0]
    gaps = len(_gaps(entries))
    sparse = min(dense, kept.nbytes + gaps)
    shared = sparse
    for values, others in ((kept, gaps), (entries, 0)):  # with gaps, or with zero as one of the values
        number = len(np.unique(values))
        if 0 < number <= _MOST_VALUES:
            bits = max(1, int(number - 1).bit_length())
            shared = min(shared, number * entries.itemsize + -(-len(values) * bits // 8) + others)
    return Ledger(dense, sparse, max(shared, 0), coded)


def _as_bits(tensor: Tensor) -> np.ndarray | None:
    if tensor.dtype not in _DTYPES:
        return None
    kind = torch.int32 if tensor.element_size() == 4 else torch.int16
    flat: np.ndarray = tensor.detach().cpu().contiguous().view(kind).flatten().numpy()
    return flat


def _head(tensor: Tensor) -> bytes:
    return struct.pack(f"<BB{tensor.ndim}I", _DTYPES.index(tensor.dtype), tensor.ndim, *tensor.shape)


def _body(entries: np.ndarray, kind: int, shape: torch.Size) -> bytes | None:
    """The kind and all after the head; None where the kind does not fit."""
    parts = [struct.pack("<B", kind)]
    kept = entries
    if kind & SPARSE:
        kept = entries[entries != 0]
        if len(kept) > (1 - _LEAST_ZEROS) * len(entries):
            return None
    parts.append(struct.pack("<I", len(kept)))
    if kind & SPARSE:
        gaps = _gaps(entries)
        lengths = code_lengths(np.bincount(gaps, minlength=1))
        parts += [struct.pack("<IH", len(gaps), len(lengths)), lengths.tobytes(), _stream(gaps, lengths)]
    if kind & ROWS:
        coded = _of_rows(entries, shape)
    elif kind & CODED:
        coded = _of_all(kept)
    else:
        return b"".join([*parts, kept.tobytes()])
    if coded is None:
        return None
    values, codes = coded
    lengths = code_lengths(np.bincount(codes, minlength=values.shape[-1]))
    parts += [struct.pack("<H", values.shape[-1]), values.tobytes(), lengths.tobytes(), _stream(codes, lengths)]
    return b"".join(parts)


def _of_all(entries: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    if len(np.unique(entries[:4096])) > _MOST_VALUES:  # most tensors end here
        return None
    values, codes = np.unique(entries, return_inverse=True)
    return (values, codes.astype(np.uint8)) if len(values) <= _MOST_VALUES else None


def _of_rows(entries: np.ndarray, shape: torch.Size) -> tuple[np.ndarray, np.ndarray] | None:
    if len(shape) < 2:
        return None
    rows = entries.reshape(shape[0], -1)
    if rows.shape[1] < 8 or len(np.unique(rows[0])) > _PER_ROW:
        return None
    found = [np.unique(row, return_inverse=True) for row in rows]
    width = max(len(values) for values, _ in found)
    if width > _PER_ROW:
        return None
    table = np.zeros((len(rows), width), entries.dtype)
    for line, (values, _) in zip(table, found, strict=True):
        line[: len(values)] = values
    return table, np.concatenate([codes for _, codes in found]).astype(np.uint8)


def _gaps(entries: np.ndarray) -> np.ndarray:
    """(symbols,) uint8: zeros before each entry that is not zero, long runs in parts."""
    zeros = np.diff(np.flatnonzero(entries), prepend=-1) - 1
    skips = zeros // _SKIP
    gaps = np.full(len(zeros) + int(skips.sum()), _SKIP, np.uint8)
    gaps[np.cumsum(skips + 1) - 1] = zeros % _SKIP
    return gaps


def _stream(symbols: np.ndarray, lengths: np.ndarray) -> bytes:
    stream = encode(symbols, lengths).tobytes()
    return struct.pack("<I", len(stream)) + stream


@dataclass
class _Reader:
    """Takes bytes off the front."""

    rest: bytes

    def numbers(self, form: str) -> tuple[int, ...]:
        size = struct.calcsize(form)
        taken, self.rest = struct.unpack(form, self.rest[:size]), self.rest[size:]
        return taken

    def array(self, dtype: np.dtype, count: int) -> np.ndarray:
        size = count * dtype.itemsize
        if size > len(self.rest):
            raise IndexError(f"{size} bytes wanted, {len(self.rest)} left")
        taken, self.rest = np.frombuffer(self.rest[:size], dtype), self.rest[size:]
        return taken

    def symbols(self, count: int, alphabet: int) -> np.ndarray:
        lengths = self.array(np.dtype("u1"), alphabet)
        (size,) = self.numbers("<I")
        stream = self.array(np.dtype("u1"), size)
        if not lengths.any():  # one symbol, the last of the alphabet, or none
            return np.full(count, max(alphabet, 1) - 1, np.uint8)
        return decode(stream, lengths, count)


def _unpacked(reader: _Reader) -> Tensor:
    kind, dtype, dimensions = reader.numbers("<BBB")
    shape = reader.numbers(f"<{dimensions}I")
    (stored,) = reader.numbers("<I")
    if kind not in _KINDS[1:] or dtype >= len(_DTYPES):
        raise ValueError("packed weights: of a kind that this version does not know")
    bits = _BITS[dtype]
    number = int(np.prod(shape, dtype=np.int64))
    if stored > number or (stored != number and not kind & SPARSE):
        raise ValueError(f"packed weights: {stored} entries for {number} places")
    places = None
    if kind & SPARSE:
        count, alphabet = reader.numbers("<IH")
        gaps = reader.symbols(count, alphabet).astype(np.int64)
        places = (np.cumsum(np.where(gaps == _SKIP, _SKIP, gaps + 1)) - 1)[gaps != _SKIP]
        if len(places) != stored or (stored and places[-1] >= number):
            raise ValueError("packed weights: gaps that do not lead to the entries")
    if kind & (CODED | ROWS):
        (width,) = reader.numbers("<H")
        rows = shape[0] if kind & ROWS else 1
        table = reader.array(bits, rows * width).reshape(rows, width)
        codes = reader.symbols(stored, width)
        if stored and int(codes.max()) >= width:
            raise ValueError("packed weights: a code without a value")
        kept = np.take_along_axis(table, codes.reshape(rows, -1).astype(np.int64), 1).reshape(-1)
    else:
        kept = reader.array(bits, stored)
    entries = kept
    if places is not None:
        entries = np.zeros(number, bits)
        entries[places] = kept
    whole = torch.from_numpy(np.array(entries)).view(_DTYPES[dtype])
    return whole.reshape(shape)
