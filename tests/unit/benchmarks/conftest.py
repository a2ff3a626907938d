"""The benchmarks are no part of the package: they are taken from the checkout, after whatever is installed."""

import sys

from places import ROOT

sys.path.append(str(ROOT))
