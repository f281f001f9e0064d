#!/usr/bin/env python3
"""Every trained method on the test patients, and the report page.

The same as ``dyefreenet evaluate``: ``--help`` lists the options.
"""

import sys

import _bootstrap  # noqa: F401  # finds the package in a bare checkout

from dyefreenet.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
