"""`python -m onebeat` is the `onebeat` command."""

import sys

from onebeat.cli import main

sys.exit(main())
