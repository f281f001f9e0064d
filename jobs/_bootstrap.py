"""Lets ``jobs/*.py`` run from a bare checkout; each of them begins with ``import _bootstrap``.

Where ``dyefreenet`` is installed this does nothing. Elsewhere the driver finds the package beside
the jobs; the workers get it from ``dyefreenet.runtime``, which sends it along.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("dyefreenet") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "platform"))
