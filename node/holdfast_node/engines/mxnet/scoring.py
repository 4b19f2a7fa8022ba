"""An exported MXNet network as a scorer: loaded from verified bytes, never from a path.

`mx.nd.load` and `SymbolBlock.imports` read whatever lies at a path; `load_json` and `load_frombuffer` read what was
just verified. Parameter files are MXNet's own format: arrays, nothing that is executed.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast_node.models import VerifiedModel
from holdfast_node.predict.errors import PredictorError
from holdfast_node.predict.predictor import ServedModel


def load_scorer(model: VerifiedModel, served: ServedModel, batch_rows: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return what maps at most `batch_rows` rows to the network's first output, on the CPU.

    Every call runs the whole batch, filled up with zeros: one compiled graph, and the same time for every request.

    Raises:
        PredictorError: the files are not a network with all its parameters that takes such an input.
    """
    import mxnet as mx  # type: ignore[import-not-found] # seconds to import; only a predictor needs it

    try:
        symbol = mx.sym.load_json(model.read(served.symbol).decode())
        arrays = mx.nd.load_frombuffer(model.read(served.parameters))
        if not isinstance(arrays, dict):
            raise PredictorError(f"{served.parameters} must hold named parameters")
        shape = (batch_rows, *served.shape)
        executor = symbol.simple_bind(mx.cpu(), grad_req="null", **{served.input: shape})
        found = {name.partition(":")[2] or name: array for name, array in arrays.items()}
        for name, target in (*executor.arg_dict.items(), *executor.aux_dict.items()):
            if name == served.input or name.endswith("_label"):  # a loss's label: unused when predicting
                continue
            if name not in found or found[name].shape != target.shape:
                got = found[name].shape if name in found else "nothing"
                raise PredictorError(f"{served.parameters} must hold {name} of shape {target.shape}, got {got}")
            target[:] = found[name]
    except mx.base.MXNetError as error:
        lines = str(error).strip().splitlines() or ["unknown"]
        raise PredictorError(f"{served.symbol} cannot be loaded: {lines[-1][:300]}") from None
    except (ValueError, UnicodeDecodeError, TypeError) as error:
        raise PredictorError(f"{served.symbol} cannot be loaded: {str(error)[:300]}") from None

    def score(rows: NDArray[Any]) -> NDArray[Any]:
        batch = np.zeros(shape, np.float32)
        batch[: len(rows)] = rows
        executor.forward(is_train=False, **{served.input: mx.nd.array(batch)})
        result: NDArray[Any] = executor.outputs[0].asnumpy()[: len(rows)]
        return result

    return score
