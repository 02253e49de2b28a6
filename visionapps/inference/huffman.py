"""Huffman's code: the shortest whole bits per symbol. Canonical, so that the lengths of its words are all to be kept.

Shapes: A symbols of the alphabet (at most 256), N symbols of the message.

Source: Huffman, A Method for the Construction of Minimum-Redundancy Codes, 1952; Schwartz and Kallick, Generating a
    Canonical Prefix Encoding, 1964.
"""

import heapq

import numpy as np

from visionapps.compiled import compiled


def code_lengths(counts: np.ndarray) -> np.ndarray:
    """How many bits the word of each symbol takes.

    Args:
        counts: (A,) how often each symbol comes, >= 0.

    Returns:
        (A,) uint8; 0 for symbols that do not come, and for one that comes alone: then there is nothing to say.
    """
    lengths = np.zeros(len(counts), np.uint8)
    # Ties go to the older tree, which keeps words short and the result the same everywhere.
    trees: list[tuple[int, int, tuple[int, ...]]] = [
        (int(count), symbol, (symbol,)) for symbol, count in enumerate(counts) if count
    ]
    heapq.heapify(trees)
    age = len(counts)
    while len(trees) > 1:
        few, many = heapq.heappop(trees), heapq.heappop(trees)
        symbols = few[2] + many[2]
        lengths[list(symbols)] += 1
        heapq.heappush(trees, (few[0] + many[0], age, symbols))
        age += 1
    return lengths


def code_words(lengths: np.ndarray) -> np.ndarray:
    """(A,) uint64: the words that belong to these lengths, each in its lowest bits."""
    words = np.zeros(len(lengths), np.uint64)
    word, last = 0, 0
    for symbol in np.argsort(lengths, kind="stable"):
        length = int(lengths[symbol])
        if not length:
            continue
        word <<= length - last
        words[symbol] = word
        word, last = word + 1, length
    return words


def encode(symbols: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The words of a message, one after the other, the highest bit of each byte first.

    Args:
        symbols: (N,) uint8, each with a word.
        lengths: (A,) uint8 as ``code_lengths`` gives.

    Returns:
        (bytes,) uint8.
    """
    sizes = lengths[symbols].astype(np.int64)
    words = code_words(lengths)[symbols]
    starts = np.cumsum(sizes) - sizes
    bits = np.zeros(int(sizes.sum()), np.uint8)
    for place in range(int(lengths.max(initial=0))):
        long = sizes > place
        shift = (sizes[long] - place - 1).astype(np.uint64)
        bits[starts[long] + place] = (words[long] >> shift) & np.uint64(1)
    return np.packbits(bits)


def decode(stream: np.ndarray, lengths: np.ndarray, count: int) -> np.ndarray:
    """The message again.

    Args:
        stream: (bytes,) uint8 of ``encode``.
        lengths: (A,) uint8 of the same code.
        count: N.

    Returns:
        (N,) uint8.

    Raises:
        ValueError: the stream ends too early, or the lengths are those of no code.
    """
    used = np.flatnonzero(lengths)
    if not len(used):
        raise ValueError("a code without words")
    if count > 8 * len(stream):
        raise ValueError(f"{len(stream)} bytes cannot hold {count} symbols")
    of_length = np.bincount(lengths[used], minlength=65).astype(np.int64)
    if int(lengths.max()) > 60 or sum(int(n) * 2.0**-bits for bits, n in enumerate(of_length)) > 1:
        raise ValueError("lengths that no code has")
    first_word, first_symbol = np.zeros(65, np.int64), np.zeros(65, np.int64)
    word = symbol = 0
    for length in range(1, 61):
        word = (word + int(of_length[length - 1])) << 1
        first_word[length], first_symbol[length] = word, symbol
        symbol += int(of_length[length])
    by_length = used[np.argsort(lengths[used], kind="stable")].astype(np.uint8)
    message = np.zeros(count, np.uint8)
    if _read(stream, of_length, first_word, first_symbol, by_length, message) < count:
        raise ValueError("the stream of a code ends too early")
    return message


@compiled
def _read(
    stream: np.ndarray,
    of_length: np.ndarray,
    first_word: np.ndarray,
    first_symbol: np.ndarray,
    by_length: np.ndarray,
    message: np.ndarray,
) -> int:
    """Fill the message; returns how many symbols there were."""
    place, end = 0, 8 * len(stream)
    for i in range(len(message)):
        word, length = np.int64(0), 0
        while True:
            if place >= end or length >= 60:
                return i
            word = 2 * word + ((np.int64(stream[place >> 3]) >> (7 - (place & 7))) & 1)
            place += 1
            length += 1
            rank = word - first_word[length]
            if 0 <= rank < of_length[length]:
                message[i] = by_length[first_symbol[length] + rank]
                break
    return len(message)
