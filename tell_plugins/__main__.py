"""`python -m tell_plugins VERB ...`, what `run.sh` calls."""

import sys

from tell_plugins.cli import main

if __name__ == "__main__":
    sys.exit(main())
