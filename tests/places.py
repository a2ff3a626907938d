"""Where the checkout and the real data beside it lie."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: real segmentations, splits and tables; tests that use them skip where they are absent
SHARED = ROOT.parent / "shared"
REAL_MAPS = SHARED / "data" / "oai_zib_uq"
OAI_SPLITS = SHARED / "data" / "oai_splits"
