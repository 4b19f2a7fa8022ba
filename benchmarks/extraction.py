"""The equation-solving extraction of a logistic regression, against vanilla outputs and against a predictor's.

    .venv-node/bin/python benchmarks/extraction.py [--json] [--budgets 1 10 25 100]

After Tramèr, Zhang, Juels, Reiter, Ristenpart: "Stealing Machine Learning Models via Prediction APIs", USENIX Security
2016. The logarithm of the ratio of two probabilities is linear in the parameters (section 4.1), so d + 1 exact answers
are a solvable system for d features, for two classes and for more. Against rounded answers the attacker solves the
same equations by weighted least squares, and retrains on the answers besides (section 7); the better copy counts.
Against labels it retrains, and for two classes it searches the boundary (Lowd and Meek, "Adversarial Learning", KDD
2005). The paper's measures: how often copy and model agree on the held-out digits (1 - R_test) and on uniformly random
inputs (1 - R_unif), and the distance of the parameters.

The model is real (MXNet, trained here on the digits of `examples/digits`, signed, verified, loaded), and the answers
are the predictor's own. Everything runs in the node's environment; `measure` calls it from any other.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUDGETS = (1, 10, 25, 100)
SEED = 20160810
UNIFORM_INPUTS = 10_000


@dataclass(frozen=True, kw_only=True)
class Row:
    """One attack: `budget` is in multiples of d + 1; agreements are between 0 and 1; `error` is relative."""

    model: str
    answers: str
    attack: str
    budget: int
    queries: int
    error: float
    test_agreement: float
    uniform_agreement: float


def measure(python: Path, budgets: Iterable[int] = BUDGETS, timeout: float = 300) -> list[Row]:
    """Run the attacks in the node's environment (`.venv-node/bin/python`) and return their rows."""
    result = subprocess.run(
        [python, __file__, "--json", "--budgets", *map(str, budgets)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(f"the extraction ended with status {result.returncode}: {result.stderr[-2000:]}")
    return [Row(**row) for row in json.loads(result.stdout)]


# --- the attacker: answers in, parameters out ---


def log_ratios(np: Any, answers: Any, unit: float) -> tuple[Any, Any]:
    """Return log(p_k / p_0) for every class k, and how far to trust each (1 / standard deviation).

    A rounded probability is known to half a `unit`, so its logarithm to half a unit over the probability.
    """
    floor = max(unit / 2, 1e-300)
    clipped = np.maximum(answers, floor)
    logs = np.log(clipped)
    if not unit:
        return logs - logs[:, :1], np.ones_like(logs)
    trust = 1 / (1 / clipped + 1 / clipped[:, :1])
    trust[(answers <= 0) | (answers[:, :1] <= 0)] *= 1e-3  # all that is known is that it is small
    return logs - logs[:, :1], trust


def solve(np: Any, inputs: Any, answers: Any, unit: float) -> Any:
    """Return the parameters (classes x (d + 1), the first class's zero) that solve the equations."""
    design = np.hstack([inputs, np.ones((len(inputs), 1))])
    ratios, trust = log_ratios(np, answers, unit)
    found = np.zeros((answers.shape[1], design.shape[1]))
    for k in range(1, answers.shape[1]):
        weight = trust[:, k : k + 1]
        found[k] = np.linalg.lstsq(design * weight, ratios[:, k] * weight[:, 0], rcond=None)[0]
    return found


def retrain(np: Any, inputs: Any, answers: Any, steps: int = 1500) -> Any:
    """Return the parameters of a logistic regression trained on the answers (rows sum to one), by Nesterov's method."""
    mean = inputs.mean(axis=0)
    design = np.hstack([inputs - mean, np.ones((len(inputs), 1))])
    step = 2.0 / (np.linalg.norm(design, 2) ** 2 / len(design) + 1e-9)
    found = velocity = np.zeros((answers.shape[1], design.shape[1]))
    for number in range(steps):
        ahead = found + number / (number + 3) * velocity
        scores = design @ ahead.T
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        gradient = (powers / powers.sum(axis=1, keepdims=True) - answers).T @ design / len(design) + 1e-6 * ahead
        following = ahead - step * gradient
        velocity, found = following - found, following
    found = found.copy()
    found[:, -1] -= found[:, :-1] @ mean
    return found


def search_boundary(np: Any, ask: Callable[[Any], Any], d: int, queries: int, random: Any) -> Any:
    """Return the parameters of a two-class model, up to their scale, from labels only.

    Bisect d segments between inputs of different labels; the hyperplane through the d boundary points is the model.
    """
    inputs = random.uniform(-1, 2, (2 * d, d))
    labels = ask(inputs).argmax(axis=1)
    zeros, ones = inputs[labels == 0], inputs[labels == 1]
    if not len(zeros) or not len(ones):
        return np.zeros((2, d + 1))
    # The segments form a tree on the inputs: where they form a circle, their boundary points are dependent.
    low = np.vstack([zeros, np.repeat(zeros[:1], len(ones) - 1, axis=0)])
    high = np.vstack([np.repeat(ones[:1], len(zeros), axis=0), ones[1:]])
    chosen = random.permutation(len(low))[:d]
    low, high = low[chosen], high[chosen]
    for _ in range(max(1, (queries - 2 * d) // d)):
        middle = (low + high) / 2
        is_high = ask(middle).argmax(axis=1) == 1
        high[is_high], low[~is_high] = middle[is_high], middle[~is_high]
    points = np.hstack([(low + high) / 2, np.ones((d, 1))])
    plane = np.linalg.svd(points)[2][-1]
    sign = np.sign((np.hstack([ones, np.ones((len(ones), 1))]) @ plane).mean())
    return np.stack([np.zeros(d + 1), plane * sign])


def distance(np: Any, copy: Any, truth: Any, *, any_scale: bool = False) -> float:
    """Return the relative distance of two models' parameters.

    Softmax does not change when every class gets the same added, so the classes' mean is taken out first. A boundary
    gives no scale: with `any_scale` the best one is taken.
    """
    copy, truth = copy - copy.mean(axis=0), truth - truth.mean(axis=0)
    if any_scale and (norm := float((copy * copy).sum())):
        copy = copy * float((copy * truth).sum()) / norm
    return float(np.linalg.norm(copy - truth) / np.linalg.norm(truth))


# --- the victim, and the game between the two ---


class Victim:
    """A logistic regression trained with MXNet, exported, signed, verified, loaded."""

    def __init__(self, np: Any, mx: Any, classes: int, directory: Path) -> None:
        sys.path[:0] = [str(ROOT / "node"), str(ROOT / "examples/digits")]
        from digits import held_out_part, training_part

        self._np, self._mx = np, mx
        pixels, labels = training_part()
        self.test = held_out_part()[0]
        target = labels % 2 if classes == 2 else labels
        mx.random.seed(SEED)
        net = mx.gluon.nn.HybridSequential()
        net.add(mx.gluon.nn.Dense(classes, in_units=64))
        net.initialize(mx.init.Xavier())
        net.hybridize()
        trainer = mx.gluon.Trainer(net.collect_params(), "adam", {"learning_rate": 0.02, "wd": 1e-4})
        loss_of = mx.gluon.loss.SoftmaxCrossEntropyLoss()
        data, want = mx.nd.array(pixels), mx.nd.array(target)
        for _ in range(300):
            with mx.autograd.record():
                loss = loss_of(net(data), want)
            loss.backward()
            trainer.step(len(pixels))
        net.export(str(directory / "net"))
        self._symbol, self._params = directory / "net-symbol.json", directory / "net-0000.params"
        weights, bias = (parameter.data().asnumpy().astype(float) for parameter in net.collect_params().values())
        self.truth = np.hstack([weights, bias[:, None]])
        self.accuracy = float((self.labels(self.truth, held_out_part()[0]) == held_out_labels(classes)).mean())
        self._publish(directory)

    def _publish(self, directory: Path) -> None:
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.hashes import SHA256

        from holdfast_node.engines.mxnet.scoring import load_scorer
        from holdfast_node.models import load_verified
        from holdfast_node.predict.predictor import described
        from holdfast_node.signing import public_key_pem, sign_model

        description = {"version": 1, "symbol": "net-symbol.json", "parameters": "net-0000.params", "input": "data"}
        description |= {"shape": [64], "activation": "softmax"}
        record = {"version": 1, "job_id": "victim", "cluster": "demo"}
        (directory / "serving.json").write_text(json.dumps(description))
        (directory / "holdfast-model.json").write_text(json.dumps(record))
        key = ec.generate_private_key(ec.SECP256R1())
        pem = public_key_pem(key.public_key())
        signature = directory.parent / f"{directory.name}.sig"
        signature.write_bytes(sign_model(directory, "victim", lambda m: key.sign(m, ec.ECDSA(SHA256())), pem))
        model = load_verified(directory, signature, pem, job_id="victim", cluster="demo")
        self._served = described(model)
        self._scorer = load_scorer(model, self._served, 4096)

    def labels(self, parameters: Any, inputs: Any) -> Any:
        """Return the classes that a model with these parameters gives."""
        return (inputs @ parameters[:, :-1].T + parameters[:, -1]).argmax(axis=1)

    def vanilla(self, inputs: Any) -> Any:
        """Answer as MXNet does: `SymbolBlock.imports`, softmax, every bit of it."""
        mx = self._mx
        net = mx.gluon.SymbolBlock.imports(str(self._symbol), ["data"], str(self._params))
        return mx.nd.softmax(net(mx.nd.array(inputs))).asnumpy().astype(float)

    def holdfast(self, output: str, digits: int, top_k: int) -> Callable[[Any], Any]:
        """Return what answers as the predictor does; the attacker makes a row of class probabilities of each answer."""
        from holdfast_node.contract.documents import Output
        from holdfast_node.predict.disclosure import Disclosure
        from holdfast_node.predict.predictor import Predictor

        np = self._np
        disclosure = Disclosure(output=Output(output), digits=digits, top_k=top_k)
        predictor = Predictor(self._served, self._scorer, disclosure)

        def ask(inputs: Any) -> Any:
            answers = np.zeros((len(inputs), len(self.truth)))
            for start in range(0, len(inputs), 4096):
                rows = predictor.predict(np.asarray(inputs[start : start + 4096], np.float32))
                for number, answer in enumerate(rows, start):
                    if isinstance(answer, str):
                        answers[number, int(answer)] = 1
                    elif isinstance(answer, list):  # what is left goes to the classes that were not named
                        named = [int(item["label"]) for item in answer]
                        left = max(0.0, 1 - sum(item["probability"] for item in answer))
                        answers[number] = left / max(1, len(self.truth) - len(named))
                        answers[number, named] = [item["probability"] for item in answer]
                    else:
                        answers[number] = list(answer.values())
            return answers

        return ask


def held_out_labels(classes: int) -> Any:
    """Return the held-out digits' classes."""
    from digits import held_out_part

    labels = held_out_part()[1]
    return labels % 2 if classes == 2 else labels


def attack(
    np: Any, victim: Victim, name: str, answers: str, ask: Any, unit: float, budgets: Iterable[int]
) -> list[Row]:
    """Return a row for every budget and way to copy the victim from what `ask` answers."""
    random = np.random.default_rng(SEED)
    d = victim.truth.shape[1] - 1
    uniform = random.uniform(0, 1, (UNIFORM_INPUTS, d))
    labels_only = answers == "labels"

    def row(kind: str, budget: int, queries: int, copy: Any, *, any_scale: bool = False) -> Row:
        agreements = [
            float((victim.labels(copy, inputs) == victim.labels(victim.truth, inputs)).mean())
            for inputs in (victim.test, uniform)
        ]
        error = distance(np, copy, victim.truth, any_scale=any_scale)
        return Row(
            model=name,
            answers=answers,
            attack=kind,
            budget=budget,
            queries=queries,
            error=error,
            test_agreement=agreements[0],
            uniform_agreement=agreements[1],
        )

    rows = []
    for budget in budgets:
        queries = budget * (d + 1)
        # The origin and the unit vectors are the best conditioned d + 1 questions; with more, random ones besides.
        inputs = np.vstack([np.zeros(d), np.eye(d), random.uniform(0, 1, (queries - d - 1, d))])
        given = ask(inputs)
        if not labels_only:
            rows.append(row("equations", budget, queries, solve(np, inputs, given, unit)))
        if unit or labels_only:
            total = np.maximum(given.sum(axis=1, keepdims=True), 1e-9)
            copy = retrain(np, inputs, given / total)
            rows.append(row("retraining", budget, queries, copy, any_scale=labels_only))
        if labels_only and len(victim.truth) == 2 and budget > 1:
            plane = search_boundary(np, ask, d, queries, random)
            rows.append(row("boundary", budget, queries, plane, any_scale=True))
    return rows


def guess(np: Any, victim: Victim, name: str) -> Row:
    """Return how far the most frequent label goes, for comparison: a copy that nobody had to ask for."""
    random = np.random.default_rng(SEED)
    sets = (victim.test, random.uniform(0, 1, (UNIFORM_INPUTS, victim.truth.shape[1] - 1)))
    test, uniform = (float(np.bincount(victim.labels(victim.truth, inputs)).max()) / len(inputs) for inputs in sets)
    return Row(
        model=name,
        answers="nothing",
        attack="one label for all",
        budget=0,
        queries=0,
        error=1.0,
        test_agreement=test,
        uniform_agreement=uniform,
    )


#: What leaves: the answers' name, the predictor's settings, the unit that probabilities are rounded to.
ANSWERS: dict[str, tuple[str, int, int, float]] = {
    "3 digits": ("probabilities", 3, 1, 1e-3),
    "2 digits": ("probabilities", 2, 1, 1e-2),
    "1 digit": ("probabilities", 1, 1, 1e-1),
    "top-3, 2 digits": ("top-k", 2, 3, 1e-2),
    "labels": ("labels", 2, 1, 0.0),
}


def run(budgets: Iterable[int] = BUDGETS) -> list[Row]:
    """Train both victims, attack each through each kind of answer, and return the rows. Needs MXNet."""
    import mxnet as mx
    import numpy as np

    rows = []
    for name, classes in (("binary", 2), ("multinomial", 10)):
        with tempfile.TemporaryDirectory() as scratch:
            directory = Path(scratch, "model")
            directory.mkdir()
            victim = Victim(np, mx, classes, directory)
            rows.append(guess(np, victim, name))
            rows += attack(np, victim, name, "vanilla", victim.vanilla, 0.0, [min(budgets)])
            for answers, (output, digits, top_k, unit) in ANSWERS.items():
                if output == "top-k" and classes == 2:
                    continue  # three of two classes are all of them
                rows += attack(np, victim, name, answers, victim.holdfast(output, digits, top_k), unit, budgets)
    return rows


def markdown(rows: list[Row]) -> str:
    """Return the rows as the table of docs/predictions.md."""
    head = ["model", "what leaves", "attack", "queries", "parameter error", "agrees on test", "agrees on uniform"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        count = f"{row.queries:,} ({row.budget} x)"
        numbers = [f"{row.error:.1e}", f"{row.test_agreement:.3f}", f"{row.uniform_agreement:.3f}"]
        lines.append("| " + " | ".join([row.model, row.answers, row.attack, count, *numbers]) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Print the rows."""
    parser = argparse.ArgumentParser(description="Extract a logistic regression from its predictions.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS), help="in multiples of d + 1")
    arguments = parser.parse_args()
    rows = run(arguments.budgets)
    sys.stdout.write(json.dumps([asdict(row) for row in rows]) if arguments.json else markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
