"""The command `worker`, and `python -m worker`."""

import gc
import sys

gc.disable()  # imports leave little garbage: its search takes a sixth of the start

from worker.cli import main  # noqa: E402

gc.enable()

if __name__ == "__main__":
    sys.exit(main())
