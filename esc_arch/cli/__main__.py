"""`python -m esc_arch.cli` is the `basicsr` command, and so is this file run by its path."""

import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
if not __package__ and sys.path[0] == _HERE:
    # Started as a file. Python has put this folder in front, whose modules have everyday names; in
    # its place, and last, the folder that the package is in, which may not be installed.
    sys.path[:] = [*sys.path[1:], os.path.dirname(os.path.dirname(_HERE))]

from esc_arch.cli.main import main  # noqa: E402  (once it can be found)

if __name__ == "__main__":
    sys.exit(main())
