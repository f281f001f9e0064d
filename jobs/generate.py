#!/usr/bin/env python3
"""Virtual contrast of a plain CT series, or of a whole archive.

The same as ``dyefreenet generate``: ``--help`` lists the options.
"""

import sys

import _bootstrap  # noqa: F401  # finds the package in a bare checkout

from dyefreenet.cli import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
