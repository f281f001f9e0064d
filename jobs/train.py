#!/usr/bin/env python3
"""One training stage: ``--stage ssl|primary|primary_scratch|refine|unet|pix2pix``.

The same as ``dyefreenet train``: ``--help`` lists the options.
"""

import sys

import _bootstrap  # noqa: F401  # finds the package in a bare checkout

from dyefreenet.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
