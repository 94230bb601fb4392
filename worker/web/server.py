"""The server of `worker web`: uvicorn, with streams that end when it stops, and an exit status that tells how."""

from __future__ import annotations

import logging
import socket
from types import FrameType

import uvicorn

from worker.errors import SettingsError
from worker.observe.loopback import is_loopback
from worker.settings import Settings
from worker.web.application import WebApp, web_app

logger = logging.getLogger("longhaul.web")

_SHUTDOWN_SECONDS = 5
_IDLE_SECONDS = 30
#: Exit status of a process that signal 0 would have ended; a shell adds the number of the signal.
_ENDED_BY_SIGNAL = 128


class Server(uvicorn.Server):
    """A server that ends the streams of events when it stops: they would keep it from that.

    Args:
        settings: the settings.
        application: the application.

    Attributes:
        exit_status: 0, or that of the second signal, which has forced the end.
    """

    def __init__(self, settings: Settings, application: WebApp) -> None:
        self._application = application
        self.exit_status = 0
        proxies = settings.web.trusted_proxies
        super().__init__(
            uvicorn.Config(
                application,
                host=settings.web.host,
                port=settings.web.port,
                proxy_headers=bool(proxies),
                forwarded_allow_ips=proxies,
                server_header=False,
                access_log=False,
                log_config=None,
                timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
                timeout_keep_alive=_IDLE_SECONDS,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop at the first signal; at a second one, without waiting. uvicorn calls this in a handler of the signal.

        It does not call uvicorn's method, which keeps the signal and raises it again after the shutdown: the process
        would end by SIGTERM although it has answered every request.
        """
        if self.should_exit:
            self.force_exit = True
            self.exit_status = _ENDED_BY_SIGNAL + sig
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams, and wait for the other requests."""
        self._application.backend.end_streams()
        await super().shutdown(sockets)


def check_settings(settings: Settings) -> None:
    """Raise `SettingsError` unless the server may listen where the settings say."""
    web = settings.web
    if web.tokens_file is None and not is_loopback(web.host):
        raise SettingsError(
            f"web.host = {web.host!r} is not this machine alone, and there are no tokens: set web.tokens_file, and "
            f"create a token with `worker web token`"
        )


def serve(settings: Settings) -> int:
    """Serve the API until a signal. Return the exit status: 0, or 128 plus the signal that forced the end.

    Raises:
        SettingsError: the settings would open the API to others without a token, or the tokens cannot be read.
    """
    check_settings(settings)
    application = web_app(settings)
    application.check_tokens()
    logger.info("serving host=%s port=%d tokens=%s", settings.web.host, settings.web.port, settings.web.tokens_file)
    server = Server(settings, application)
    server.run()
    return server.exit_status
