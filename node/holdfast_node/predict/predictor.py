"""A verified model as a predictor: arrays in, what may leave out.

The model says what it is in a file of its own, `serving.json`, which is signed with the rest of it; what leaves is the
node's to say (`Disclosure`). A script writes the file beside its export, with nothing of Holdfast in it:

    {"version": 1, "symbol": "digits-symbol.json", "parameters": "digits-0000.params", "input": "data",
     "shape": [64], "activation": "softmax", "labels": ["0", "1"]}
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast_node.contract.documents import Document
from holdfast_node.contract.errors import DocumentError
from holdfast_node.models import VerifiedModel
from holdfast_node.predict.disclosure import Disclosure
from holdfast_node.predict.errors import PredictorError

SERVING_NAME = "serving.json"
MAX_VALUES_PER_ROW = 1 << 20
#: How far from one a row of probabilities may sum: a thousand float32 roundings.
_SUM_TOLERANCE = 1e-3

#: Maps rows of inputs (float32, at most the batch) to the model's raw outputs, one row each.
Scorer = Callable[[NDArray[np.float32]], NDArray[Any]]


class Activation(StrEnum):
    """What turns the model's output into probabilities; `none` where it already is."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    NONE = "none"


@dataclass(frozen=True, kw_only=True)
class ServedModel(Document):
    """How a model is used: its files, its input's name and shape (without the batch), and what its output means.

    `labels` are the classes' names; empty: their numbers. With `sigmoid` the one output is the second class's.
    """

    symbol: str
    parameters: str
    input: str
    shape: tuple[int, ...]
    activation: Activation
    labels: tuple[str, ...] = ()
    version: int = 1

    def validate(self) -> None:
        """Check version, shape and labels."""
        if self.version != 1:
            raise DocumentError(f"{SERVING_NAME} version must be 1, got {self.version}")
        values = int(np.prod(self.shape, dtype=np.int64)) if all(0 < n < 1 << 20 for n in self.shape) else 0
        if not self.shape or len(self.shape) > 8 or not 0 < values <= MAX_VALUES_PER_ROW:
            raise DocumentError(
                f"{SERVING_NAME} shape must be one row's, of 1 to {MAX_VALUES_PER_ROW} values, got {list(self.shape)}"
            )
        if len(set(self.labels)) != len(self.labels):
            raise DocumentError(f"{SERVING_NAME} labels must be distinct")


def described(model: VerifiedModel) -> ServedModel:
    """Return how a verified model is used.

    Raises:
        PredictorError: it does not say, or says nonsense.
    """
    if SERVING_NAME not in model.files:
        raise PredictorError(
            f"the model of job {model.record.job_id} holds no {SERVING_NAME}, which says how to use it; have the "
            "script write one beside its export (docs/predictions.md) and train again"
        )
    try:
        return ServedModel.parse(model.read(SERVING_NAME))
    except (DocumentError, UnicodeDecodeError) as error:
        raise PredictorError(f"the model's {SERVING_NAME}: {error}") from None


class Predictor:
    """Answers for rows of one model. One thread at a time."""

    def __init__(self, served: ServedModel, scorer: Scorer, disclosure: Disclosure) -> None:
        """Try the model on zeros and keep it.

        Raises:
            PredictorError: it gives no scores, not one per label, or with activation `none` no probabilities.
        """
        self._served, self._scorer, self._disclosure = served, scorer, disclosure
        found = self._probabilities(np.zeros((1, *served.shape), np.float32))
        self.labels = served.labels or tuple(str(number) for number in range(found.shape[1]))
        if len(self.labels) != found.shape[1]:
            raise PredictorError(f"the model has {found.shape[1]} classes, {SERVING_NAME} names {len(self.labels)}")

    @property
    def shape(self) -> tuple[int, ...]:
        """One row's shape."""
        return self._served.shape

    def predict(self, rows: NDArray[np.float32]) -> list[Any]:
        """Return what may leave of the predictions for `rows` (rows x shape), a JSON value each.

        Raises:
            PredictorError: the model gave something else than probabilities; nothing leaves.
        """
        return self._disclosure.apply(self._probabilities(rows), self.labels)

    def _probabilities(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        scores = np.asarray(self._scorer(rows), dtype=np.float64)
        if scores.ndim == 1:
            scores = scores[:, None]
        if scores.ndim != 2 or len(scores) != len(rows) or not np.isfinite(scores).all():
            raise PredictorError(f"the model must give one row of finite scores per row, got shape {scores.shape}")
        match self._served.activation:
            case Activation.SIGMOID:
                if scores.shape[1] != 1:
                    raise PredictorError(f"a model with activation sigmoid has one output, got {scores.shape[1]}")
                positive = 0.5 * (1 + np.tanh(0.5 * scores))
                result = np.hstack([1 - positive, positive])
            case Activation.SOFTMAX:
                powers = np.exp(scores - scores.max(axis=1, keepdims=True))
                result = powers / powers.sum(axis=1, keepdims=True)
            case Activation.NONE:
                result = scores
        if result.shape[1] < 2 or result.min() < 0 or np.abs(result.sum(axis=1) - 1).max() > _SUM_TOLERANCE:
            raise PredictorError(
                "the model's output must be probabilities of two classes or more that sum to one; if it gives scores, "
                f"say softmax or sigmoid in {SERVING_NAME}"
            )
        return np.asarray(np.minimum(result, 1.0), dtype=np.float64)
