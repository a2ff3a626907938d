"""The benchmarks are no part of the package: they are taken from the checkout, after whatever is installed."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent.parent))
