"""`basicsr prepare dflip`, for those who work in a clone of the repository."""

import sys

from esc_arch.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["prepare", "dflip", *sys.argv[1:]]))
