"""`python -m esc_arch.cli` is the `basicsr` command."""

import sys

from esc_arch.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
