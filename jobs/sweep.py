#!/usr/bin/env python3
"""Search of a stage's settings with Ray Tune and Optuna.

The same as ``dyefreenet sweep``: ``--help`` lists the options.
"""

import sys

import _bootstrap  # noqa: F401  # finds the package in a bare checkout

from dyefreenet.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
