"""Read by every Python that is started with this directory on its path: opens the seam that a round asked for.

The service itself knows nothing of it. See `tests/chaos/seam.py`.
"""

import os
import sys

if os.environ.get("CHAOS_SEAM") and {"app.cli.web", "worker"} & set(sys.orig_argv):
    from tests.chaos import seam

    seam.install()
