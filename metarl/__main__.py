"""``python -m metarl``."""

import sys

from metarl.cli.entry import main

sys.exit(main())
