"""What of a prediction leaves: a label, the first labels, or probabilities rounded to a few digits. Never a score.

An exact probability is an equation in the model's parameters: as many answers as there are parameters, and the model
is copied (Tramèr, Zhang, Juels, Reiter, Ristenpart, "Stealing Machine Learning Models via Prediction APIs", USENIX
Security 2016, sections 4.1 and 7). Rounding turns the equations into intervals (docs/predictions.md has the numbers).

Each probability is rounded on its own and the results are not scaled to sum to one: the quotient of two rounded numbers
has more digits than either, and which one was adjusted tells on which side of its rounding a probability lay.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from holdfast_node.contract.documents import Output, Predictions


@dataclass(frozen=True, kw_only=True)
class Disclosure:
    """What leaves; by default only labels.

    `digits` are decimals of a probability; `top_k` is how many labels `Output.TOP_K` gives.
    """

    output: Output = Output.LABELS
    digits: int = 2
    top_k: int = 3

    @classmethod
    def of(cls, predictions: Predictions) -> "Disclosure":
        """Return what a node's configuration allows."""
        return cls(output=predictions.output, digits=predictions.digits, top_k=predictions.top_k)

    def apply(self, probabilities: NDArray[Any], labels: tuple[str, ...]) -> list[Any]:
        """Return one JSON value per row of `probabilities` (rows x classes, each row sums to one).

        `labels`: the most probable label. `top-k`: the most probable labels, in order, each with its rounded
        probability. `probabilities`: the rounded probability of every label, in the labels' order.
        """
        if self.output is Output.LABELS:
            return [labels[int(best)] for best in probabilities.argmax(axis=1)]
        # Integers first: what leaves is then a decimal of so many digits and not a float with traces in its last bits.
        rounded = np.rint(probabilities * 10**self.digits).astype(np.int64)
        if self.output is Output.TOP_K:
            # Stable, so that equal probabilities come in the labels' order.
            order = np.argsort(-probabilities, axis=1, kind="stable")[:, : self.top_k]
            return [
                [{"label": labels[k], "probability": self._decimal(row[k])} for k in best]
                for row, best in zip(rounded, order, strict=True)
            ]
        return [{label: self._decimal(value) for label, value in zip(labels, row, strict=True)} for row in rounded]

    def _decimal(self, value: Any) -> float:
        return float(round(int(value) / 10**self.digits, self.digits))
