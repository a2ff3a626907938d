"""What the method gains and costs beside nnU-Net, and its parts beside other libraries; tests assert none of it."""

import sys
from pathlib import Path

# ``python -m`` puts the checkout first in the search path, where its folder nnunetv2_anomaly hides the installed
# package, whose trainers lie elsewhere in the checkout. Last, it serves for the benchmarks alone.
_CHECKOUT = str(Path(__file__).resolve().parent.parent)
sys.path[:] = [*(entry for entry in sys.path if str(Path(entry).resolve()) != _CHECKOUT), _CHECKOUT]
