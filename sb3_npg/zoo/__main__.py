"""``python -m sb3_npg.zoo``."""

import sys

from sb3_npg.zoo.commands import main

if __name__ == "__main__":
    sys.exit(main())
