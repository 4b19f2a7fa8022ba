"""What a worker may push to a server and pull from it: nothing that MXNet's server would abort on or misread.

MXNet trusts sizes, types and row ids (kvstore_dist_server.h, `DataHandleDefault`, `DataHandleRowSparse` and
`DataHandleCompressed`): a pull with a false row id reads beyond the array, a push of another size overwrites it.
"""

import itertools
import struct
from dataclasses import dataclass
from typing import Protocol

from holdfast_node.engines.errors import RefusedError
from holdfast_node.engines.mxnet.messages import Message

DENSE, ROW_SPARSE, COMPRESSED = range(3)
#: MXNet's type numbers with their size in bytes: float32, float64, float16 (mshadow/base.h). Others abort a server.
_ITEM_BYTES = {0: 4, 1: 8, 2: 2}
_FLOAT32 = 0


def command_of(kind: int, dtype: int) -> int:
    """Return the number that names request kind and type in a data message (`GetCommandType`, Cantor's pairing)."""
    return (kind + dtype) * (kind + dtype + 1) // 2 + dtype


_COMMANDS = {command_of(kind, dtype): (kind, dtype) for kind in range(3) for dtype in _ITEM_BYTES}
#: 2bit compression puts 16 gradients into one float32 (`GetCompressionFactor`).
_COMPRESSION_FACTOR = 16
#: ps-lite splits the range of 64-bit keys evenly between servers (`GetServerKeyRanges`); MXNet's own are ints.
_MAX_KEY, _MAX_INT = (1 << 64) - 1, (1 << 31) - 1
MAX_KEYS = 1_000_000


class Modes(Protocol):
    """What else a server has been told, in so far as data depends on it."""

    synchronous: bool
    optimizer: bool
    compression: bytes | None


@dataclass(frozen=True, slots=True)
class Value:
    """How a key was initialised: storage, type, size in bytes (of a row, where row-sparse), number of rows."""

    kind: int
    dtype: int
    size: int
    rows: int


class Values:
    """The keys that one server holds, as their first push described them."""

    def __init__(self, rank: int, servers: int) -> None:
        """Know no key yet."""
        self._first_key = _MAX_KEY // servers * rank
        self._known: dict[int, Value] = {}
        self._rows = 0  # of the longest row-sparse key
        self.gradients = False
        self.size_bytes = 0  # of all keys
        self.multi_precision = False

    def check(self, message: Message, rank: int, modes: Modes) -> bool:
        """Return if the server may process this push, pull or both from the worker with this rank.

        What is returned is whether every later message of the same shape may pass too: a key keeps its description,
        and modes only change before the first gradient.

        Raises:
            RefusedError: it is malformed, or not what the key's first push allows.
        """
        found = _COMMANDS.get(message.head)
        if found is None:
            raise RefusedError(f"data message {message.head} is of no known kind and type")
        kind, dtype = found
        # Worker 0 may initialise a key with any number of rows; nobody needs more than there are.
        keys, size, lengths = _parts(message, max(2, 1 + self._rows) if rank else _MAX_INT)
        if kind == ROW_SPARSE:
            self._check_sparse(message, rank, modes, dtype, keys, size, lengths)
            return False
        if kind == COMPRESSED and message.push:
            self._check_compressed(message, modes, dtype, keys, size, lengths)
            return True
        if len(keys) != 1:
            raise RefusedError(f"a dense push or pull must be of one key, got {len(keys)}")
        key = self._local(keys[0])
        value = self._known.get(key)
        if not message.push:
            self._check_pull(message, key, value, dtype, size)
        elif len(lengths) != 1 or lengths[0] != size or not size or size % _ITEM_BYTES[dtype]:
            raise RefusedError(f"the size of key {key} must be that of the data, a multiple of its type's, got {size}")
        elif value is None:
            self._initialise(message, rank, key, Value(DENSE, dtype, size, 0))
            return False
        elif (value.kind, value.dtype, value.size) != (DENSE, dtype, size):
            raise RefusedError(
                f"key {key} must be pushed as it was initialised, in {value.size} bytes of type {value.dtype}, "
                f"got {size} bytes of type {dtype}"
            )
        else:
            self._gradient(key, modes)
        return True

    def _check_pull(self, message: Message, key: int, value: Value | None, dtype: int, size: int) -> None:
        known = value is not None and (value.kind, value.dtype) == (DENSE, dtype)
        if not known or size or len(message.arrays) != 2:
            raise RefusedError(f"a pull must be of a key that was initialised, in its type, got key {key}")

    def _check_compressed(
        self, message: Message, modes: Modes, dtype: int, keys: tuple[int, ...], size: int, lengths: tuple[int, ...]
    ) -> None:
        if modes.compression is None or dtype != _FLOAT32 or message.pull:
            raise RefusedError("a compressed push needs gradient compression, which worker 0 has not set, and float32")
        if len(keys) != 2 or len(lengths) != 2 or lengths[0] or lengths[1] != size:
            raise RefusedError("a compressed push must name the array's length and one key")
        length, key = self._local(keys[0]), self._local(keys[1])
        value = self._known.get(key)
        packed = -(-length // _COMPRESSION_FACTOR) * _ITEM_BYTES[_FLOAT32]
        if value is None or (value.kind, value.dtype) != (DENSE, dtype) or value.size != length * 4 or size != packed:
            raise RefusedError(
                f"a compressed push must be of a key as it was initialised, got {size} bytes of key {key}"
            )
        self._gradient(key, modes)

    def _check_sparse(
        self,
        message: Message,
        rank: int,
        modes: Modes,
        dtype: int,
        keys: tuple[int, ...],
        size: int,
        lengths: tuple[int, ...],
    ) -> None:
        if not keys or (message.push and message.pull):
            raise RefusedError("a row-sparse message must be a push or a pull of a key")
        key = self._local(keys[0])
        rows = [self._local(row_key) - key for row_key in keys[1:]]
        value = self._known.get(key)
        unit = lengths[1] if len(lengths) > 1 else 0
        if message.push:
            if lengths != (0, *[unit] * len(rows)) or size != unit * len(rows) or (rows and unit <= 0):
                raise RefusedError(f"a row-sparse push of key {key} must have rows of one size")
            if value is None:
                if rows != list(range(len(rows))) or not rows or unit % _ITEM_BYTES[dtype]:
                    raise RefusedError(f"row-sparse key {key} must be initialised with all its rows")
                self._initialise(message, rank, key, Value(ROW_SPARSE, dtype, unit, len(rows)))
                return
        elif value is None or size:
            raise RefusedError(f"a pull must be of a key that was initialised, got key {key}")
        if (value.kind, value.dtype) != (ROW_SPARSE, dtype):
            raise RefusedError(f"key {key} must be used as it was initialised, got row-sparse messages of type {dtype}")
        if message.push and rows and unit != value.size:
            raise RefusedError(f"the rows of key {key} must have {value.size} bytes, got {unit}")
        # Sorted and unique, as MXNet's merge of two sparse arrays takes them to be.
        if rows and (rows[0] < 0 or rows[-1] >= value.rows or any(b <= a for a, b in itertools.pairwise(rows))):
            raise RefusedError(f"the rows of key {key} must rise from 0 to at most {value.rows - 1}")
        if message.push:
            if not modes.optimizer:
                raise RefusedError("row-sparse gradients need an optimizer on the servers (update_on_kvstore=True)")
            self._gradient(key, modes)

    def _initialise(self, message: Message, rank: int, key: int, value: Value) -> None:
        if rank:  # KVStoreDist::InitImpl: only rank 0 sends initial values
            raise RefusedError(f"key {key} must be initialised by worker 0 before it is pushed")
        if message.pull or len(self._known) >= MAX_KEYS:
            raise RefusedError(f"key {key} must be initialised by a push, and be one of at most {MAX_KEYS}")
        self._known[key] = value
        self.size_bytes += value.size * (value.rows or 1)
        self._rows = max(self._rows, value.rows)

    def _gradient(self, key: int, modes: Modes) -> None:
        if not modes.optimizer and not modes.synchronous:  # the native code would abort
            raise RefusedError(f"asynchronous training needs an optimizer on the servers before key {key} is pushed")
        self.gradients = True

    def _local(self, key: int) -> int:
        """Return MXNet's own key, as `DecodeKey` computes it for this server."""
        local = key - self._first_key
        if not 0 <= local <= _MAX_INT:
            raise RefusedError("a key must be one of this server's")
        return local


def _parts(message: Message, max_keys: int) -> tuple[tuple[int, ...], int, tuple[int, ...]]:
    """Return keys, size of the data in bytes, and lengths, as `KVServer::Process` will read them."""
    arrays = message.arrays
    if not 2 <= len(arrays) <= 3 or (message.push and len(arrays) != 3) or not (message.push or message.pull):
        raise RefusedError(f"a push must have 3 data frames and a pull 2, got {len(arrays)}")
    (address, size), (_, data_size) = arrays[:2]
    if not size or size % 8 or size // 8 > max_keys:
        raise RefusedError(f"keys must be whole 64-bit numbers, at most {max_keys}, got {size} bytes")
    count = size // 8
    keys = struct.unpack(f"={count}Q", message.read(address, size))
    lengths: tuple[int, ...] = ()
    if len(arrays) == 3:
        address, length_size = arrays[2]
        if length_size != 4 * count:
            raise RefusedError(f"there must be a length for each of {count} keys, got {length_size} bytes")
        lengths = struct.unpack(f"={count}i", message.read(address, length_size))
    return keys, data_size, lengths
