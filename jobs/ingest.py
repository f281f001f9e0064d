#!/usr/bin/env python3
"""Archives of DICOM or NIfTI to training shards.

The same as ``dyefreenet ingest``: ``--help`` lists the options.
"""

import sys

import _bootstrap  # noqa: F401  # finds the package in a bare checkout

from dyefreenet.cli import main

if __name__ == "__main__":
    sys.exit(main(["ingest", *sys.argv[1:]]))
