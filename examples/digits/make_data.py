"""Write digits.csv.gz: 1,797 handwritten digits, 8 by 8 pixels of 0 to 16, one per line, the label last.

Source: "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository (E. Alpaydin and C. Kaynak,
1998, https://doi.org/10.24432/C50P49, CC BY 4.0), the test part, as scikit-learn's `load_digits` ships it. The order
is theirs and the bytes are always the same. Needs scikit-learn; training does not.
"""

import gzip
import io
from pathlib import Path

from sklearn.datasets import load_digits


def main() -> None:
    digits = load_digits()
    lines = io.StringIO()
    for pixels, label in zip(digits.data, digits.target, strict=True):
        lines.write(",".join(str(int(value)) for value in [*pixels, label]) + "\n")
    data = gzip.compress(lines.getvalue().encode(), compresslevel=9, mtime=0)
    Path(__file__).with_name("digits.csv.gz").write_bytes(data)


if __name__ == "__main__":
    main()
