"""`python -m worker.embedded`: both servers in the foreground; with `-- COMMAND`, around one command."""

from __future__ import annotations

import signal
import subprocess
import sys
from types import FrameType

from worker.embedded.services import services


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str]) -> int:
    """Run the servers until Ctrl-C or SIGTERM, or until the command after `--` ends."""
    signal.signal(signal.SIGTERM, _interrupt)
    command = arguments[1:] if arguments[:1] == ["--"] else []
    try:
        with services(default_ports=not command) as running:
            if not command:
                sys.stdout.write(
                    f"export DATABASE_URL={running.database_url}\nexport REDIS_URL={running.redis_url}\n"
                    f"# redis-cli -u {running.redis_url}  (.venv/bin/redis-cli after `make setup`)\n"
                    "# Both servers run until Ctrl-C. Their data is removed with them.\n"
                )
                sys.stdout.flush()
                signal.pause()
            child = subprocess.Popen(command, env=running.environment())  # noqa: S603
            while True:
                try:
                    return child.wait()
                except KeyboardInterrupt:
                    # The terminal sends Ctrl-C to the command as well; SIGTERM reaches only us.
                    child.terminate()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
