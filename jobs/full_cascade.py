#!/usr/bin/env python3
"""Every step of a recipe: archive, shards, six trainings, evaluation, report.

The same as ``dyefreenet run``: ``--help`` lists the options.
"""

import sys

import _bootstrap  # noqa: F401  # finds the package in a bare checkout

from dyefreenet.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
