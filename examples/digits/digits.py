"""The digits and how they are split: the last 360 are held out, and no training sees them."""

import gzip
from pathlib import Path

import numpy as np

HELD_OUT = 360
FILE = Path(__file__).with_name("digits.csv.gz")


def load():
    """Return pixels (1797 x 64, between 0 and 1) and labels, both float32."""
    with gzip.open(FILE, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype="float32")
    return table[:, :-1] / 16, table[:, -1]


def training_part():
    """Return pixels and labels of the first 1437 digits."""
    pixels, labels = load()
    return pixels[:-HELD_OUT], labels[:-HELD_OUT]


def held_out_part():
    """Return pixels and labels of the last 360 digits."""
    pixels, labels = load()
    return pixels[-HELD_OUT:], labels[-HELD_OUT:]
