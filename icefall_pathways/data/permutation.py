"""Pseudo-random permutations of any size as a function of a key, without storing them."""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

_ROUNDS = 4
_GOLDEN, _FIRST, _SECOND = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def stable_hash(*values: npt.ArrayLike) -> Hashes:
    """Return a 64-bit hash of integers, or of arrays of integers with shapes that broadcast; shape (n,) at least.

    It is the same on all machines and in all versions. Source: the output function of SplitMix64 (Steele et al., "Fast
    splittable pseudorandom number generators", OOPSLA 2014), applied to each value in turn.
    """
    state = np.zeros(1, np.uint64)
    for value in values:
        state = (state ^ np.atleast_1d(np.asarray(value)).astype(np.uint64)) + _GOLDEN
        state = (state ^ (state >> np.uint64(30))) * _FIRST
        state = (state ^ (state >> np.uint64(27))) * _SECOND
        state = state ^ (state >> np.uint64(31))
    return state


def uniform(hashes: Hashes) -> npt.NDArray[np.float64]:
    """Convert hashes to numbers in [0, 1)."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permute(positions: npt.ArrayLike, size: npt.ArrayLike, key: npt.ArrayLike) -> Ints:
    """Map positions through the pseudo-random permutation of range(size) that a key selects.

    A Feistel network over pairs of digits, whose bases have a product of `size` or slightly more. A result outside the
    range is mapped again until it is inside (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).

    Args:
      positions: Integers in range(size), shape (n,).
      size: Size of the permutation of each position, scalar or (n,).
      key: Key of the permutation of each position, scalar or (n,).
    """
    results, sizes, keys = (
        np.array(x) for x in np.broadcast_arrays(np.asarray(positions, np.int64), size, np.asarray(key, np.uint64))
    )
    high = np.ceil(np.sqrt(sizes)).astype(np.int64)
    low = -(-sizes // high)
    keys = stable_hash(keys, np.arange(2 * _ROUNDS)[:, None])
    pending = np.arange(len(results))
    while len(pending):
        results[pending] = _network(results[pending], high[pending], low[pending], keys[:, pending])
        pending = pending[results[pending] >= sizes[pending]]
    return results


def _network(positions: Ints, high: Ints, low: Ints, keys: Hashes) -> Ints:
    """Map positions through a permutation of range(high * low), with a key (n,) per half of a round."""
    left, right = np.divmod(positions, low)
    for index in range(_ROUNDS):
        left = _add_hash(left, right, keys[2 * index], high)
        right = _add_hash(right, left, keys[2 * index + 1], low)
    return left * low + right


def _add_hash(digit: Ints, other: Ints, key: Hashes, base: Ints) -> Ints:
    # The upper half of the hash, so that the sum fits into 64 bits.
    shift = (stable_hash(other.astype(np.uint64) ^ key) >> np.uint64(32)).astype(np.int64)
    return (digit + shift) % base
