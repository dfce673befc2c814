"""``python -m midapi_async`` is ``midapi``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
