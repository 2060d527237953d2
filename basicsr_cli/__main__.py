"""`python -m basicsr_cli` is the `basicsr` command."""

import sys

from basicsr_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
