"""Print the accuracy of an exported model on the 360 held-out digits, as JSON.

Usage: python evaluate.py MODEL_DIR
"""

import argparse
import json
import warnings
from pathlib import Path

import mxnet as mx
from digits import held_out_part
from mxnet import gluon, nd


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="the directory that train.py exported to")
    folder = parser.parse_args().model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the input's type is not part of an exported model
        net = gluon.SymbolBlock.imports(
            str(folder / "digits-symbol.json"), ["data"], str(folder / "digits-0000.params"), ctx=mx.cpu()
        )
    pixels, labels = held_out_part()
    predicted = net(nd.array(pixels)).asnumpy().argmax(axis=1)
    accuracy = float((predicted == labels).mean())
    print(json.dumps({"accuracy": round(accuracy, 4), "samples": len(labels)}))


if __name__ == "__main__":
    main()
