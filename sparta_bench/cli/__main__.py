"""`python -m sparta_bench.cli`, the same as `sparta-bench`."""

import sys

from sparta_bench.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
