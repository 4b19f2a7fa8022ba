"""What MXNet would accept and a server could only refuse: said on the worker, before the first gradient leaves.

And three repairs. Two let scripts run unchanged where vanilla stops: Gluon's Trainer may change its batch size, and
may use gradient compression. The third makes a pull see what was pushed before it and nothing newer: ps-lite hands
requests to a server's one thread from a heap (threadsafe_pqueue.h) that keeps no order among equal priorities, so
that of a pull and a push sent after it either may come first; and rank 0's own engine does not order the two where
they are of different arrays. Where the servers hold no optimizer, a weight's first pull then brings its gradient. So a
push waits until the worker has what it pulled of the same key; MXNet orders the rest itself, by the gradient's array.
docs/mxnet-compatibility.md has the whole table.
"""

from collections.abc import Callable, Iterator
from typing import Any

from holdfast_node.engines.errors import EngineError

#: MXNet's server aborts on every other type (kvstore_dist_server.h, MSHADOW_REAL_TYPE_SWITCH).
_DTYPES = ("float32", "float64", "float16")
_PROFILER = ("set_config", "set_state", "dump", "pause", "resume")


def install(library: Any, store_class: Any, trainer_class: Any, profiler: Any, np: Any) -> None:
    """Patch MXNet's KVStore, Gluon's Trainer and the profiler; do it after `updates.install`."""
    library.MXKVStoreCreate = _once(library.MXKVStoreCreate)
    storage: dict[Any, str] = {}
    pulled: dict[Any, Any] = {}

    def initialising(method: Callable[..., Any]) -> Callable[..., Any]:
        def init(self: Any, key: Any, value: Any, *arguments: Any, **named: Any) -> Any:
            if self._is_distributed:
                for one, arrays in _pairs(key, value):
                    for array in _leaves(arrays):
                        _require_dtype(one, np.dtype(array.dtype).name)
                        storage[one] = array.stype
            return method(self, key, value, *arguments, **named)

        return init

    def pushing(method: Callable[..., Any]) -> Callable[..., Any]:
        def push(self: Any, key: Any, value: Any, *arguments: Any, **named: Any) -> Any:
            if self._is_distributed:
                for one, arrays in _pairs(key, value):
                    for array in _leaves(arrays):
                        _require_storage(one, array.stype, storage.get(one, array.stype))
            return method(self, key, value, *arguments, **named)

        return push

    def settling(method: Callable[..., Any]) -> Callable[..., Any]:
        def push(self: Any, key: Any, *arguments: Any, **named: Any) -> Any:
            if self._is_distributed:
                for one in key if isinstance(key, list | tuple) else (key,):
                    for array in _leaves(pulled.pop(one, [])):
                        array.wait_to_read()
            return method(self, key, *arguments, **named)

        return push

    def broadcasting(method: Callable[..., Any]) -> Callable[..., Any]:
        def broadcast(self: Any, key: Any, value: Any, out: Any, priority: int = 0) -> Any:
            result = method(self, key, value, out, priority)
            if self._is_distributed:
                pulled.update(_pairs(key, out))
            return result

        return broadcast

    def pulling(method: Callable[..., Any]) -> Callable[..., Any]:
        def pull(self: Any, key: Any, out: Any = None, priority: int = 0, ignore_sparse: bool = True) -> Any:
            result = method(self, key, out, priority, ignore_sparse)
            if self._is_distributed:
                pulled.update(_pairs(key, out))
            return result

        return pull

    def compressing(method: Callable[..., Any]) -> Callable[..., Any]:
        def compress(self: Any, parameters: Any) -> Any:
            self._is_compressed = True
            return method(self, parameters)

        return compress

    def pushing_and_pulling(method: Callable[..., Any]) -> Callable[..., Any]:
        def pushpull(self: Any, key: Any, value: Any, out: Any = None, priority: int = 0) -> Any:
            if not (self._is_distributed and getattr(self, "_is_compressed", False)):
                return method(self, key, value, out, priority)
            # KVStoreDist::PushPullImpl stops where gradients are compressed; the two halves do not.
            self.push(key, value, priority)
            return self.pull(key, value if out is None else out, priority)

        return pushpull

    def rescaling(method: Callable[..., Any]) -> Callable[..., Any]:
        def rescale(self: Any, scale: float) -> None:
            if self._update_on_kvstore and self._distributed:
                self._optimizer.rescale_grad = scale  # the next push tells the servers; vanilla raises a UserWarning
            else:
                method(self, scale)

        return rescale

    for name, wrap in (
        ("init", initialising),
        ("broadcast", initialising),
        ("broadcast", broadcasting),
        ("pull", pulling),
        ("push", pushing),
        ("push", settling),
        ("pushpull", pushing_and_pulling),
        ("pushpull", settling),
        ("set_gradient_compression", compressing),
    ):
        setattr(store_class, name, wrap(getattr(store_class, name)))
    trainer_class._check_and_rescale_grad = rescaling(trainer_class._check_and_rescale_grad)
    for name in _PROFILER:
        setattr(profiler, name, _only_here(getattr(profiler, name)))


def _once(create: Callable[..., int]) -> Callable[..., int]:
    created: list[str] = []

    def create_once(name: Any, handle: Any) -> int:
        kind = name.value.decode()
        if "dist" in kind:
            if created:  # it would wait for ever at a barrier that the servers do not come to
                raise EngineError(
                    f"a worker must have one distributed KVStore, got a second one ({kind}) beside {created[0]}; pass "
                    "the first one on, for example gluon.Trainer(…, kvstore=kv)"
                )
            created.append(kind)
        return create(name, handle)

    return create_once


def _only_here(method: Callable[..., Any]) -> Callable[..., Any]:
    def profile(*arguments: Any, **named: Any) -> Any:
        if "server" in (*arguments, named.get("profile_process")):
            raise EngineError(
                "profile_process must be 'worker', got 'server': a server writes no files for its peers; profile on "
                "the workers"
            )
        return method(*arguments, **named)

    return profile


def _require_dtype(key: Any, dtype: str) -> None:
    if dtype not in _DTYPES:
        raise EngineError(f"key {key} must be of one of the types {list(_DTYPES)} on the servers, got {dtype}; cast it")


def _require_storage(key: Any, pushed: str, initialised: str) -> None:
    if pushed == "row_sparse" and initialised == "default":
        raise EngineError(
            f"the gradient of key {key} must be dense as its weight is, got row_sparse: MXNet's server would take its "
            "rows for single numbers; use sparse_grad=False, or a weight with stype='row_sparse' too"
        )


def _pairs(key: Any, value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(key, list | tuple):
        yield from zip(key, value, strict=False)
    else:
        yield key, value


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value
