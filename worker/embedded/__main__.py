"""`python -m worker.embedded`: both servers in the foreground; with `-- COMMAND`, around one command."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from types import FrameType

from worker.embedded.services import Services, services

#: Seconds between two looks at the servers.
_LOOK_SECONDS = 1.0


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _restart_ended(running: Services) -> None:
    for line in running.restart_ended():
        sys.stderr.write(f"# {line}\n")
        sys.stderr.flush()


def _wait_for(child: subprocess.Popen[bytes], running: Services) -> int:
    """Wait for the end of a command. Return its exit code."""
    try:
        while True:
            try:
                return child.wait(_LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                _restart_ended(running)
            except KeyboardInterrupt:
                # The terminal sends Ctrl-C to the command as well; SIGTERM reaches only us.
                child.terminate()
    except RuntimeError:  # a server does not start again
        child.terminate()
        child.wait()
        raise


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
                while True:
                    time.sleep(_LOOK_SECONDS)
                    _restart_ended(running)
            return _wait_for(subprocess.Popen(command, env=running.environment()), running)  # noqa: S603
    except KeyboardInterrupt:
        return 130
    except RuntimeError as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
