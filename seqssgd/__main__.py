"""``python -m seqssgd``: the command ``seqssgd``."""

import sys

from .cli import main

sys.exit(main())
