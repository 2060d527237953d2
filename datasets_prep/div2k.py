"""`basicsr prepare div2k`, for those who work in a clone of the repository."""

import sys

from esc_arch.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["prepare", "div2k", *sys.argv[1:]]))
