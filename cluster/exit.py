"""How a command ends whose exit status is all that a cluster sees of it."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn


def leave(status: int) -> NoReturn:
    """End this process with a status, as sys.exit does; but without Ray's teardown where it is connected to a cluster.

    A thread of Ray's may run through it while its memory is taken down (a segmentation fault, seen once where a machine
    had been lost): a finished run would then be reported as failed. The cluster sees that its driver has gone.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        sys.exit(status)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
