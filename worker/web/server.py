"""The server of `worker web`: uvicorn, with streams that end when it is told to stop."""

from __future__ import annotations

import logging
from types import FrameType

import uvicorn

from worker.errors import SettingsError
from worker.observe.loopback import is_loopback
from worker.settings import Settings
from worker.web.application import WebApp, web_app

logger = logging.getLogger("longhaul.web")

_SHUTDOWN_SECONDS = 5
_IDLE_SECONDS = 30


class Server(uvicorn.Server):
    """A server that ends the streams of events at the first signal: they would keep it from stopping.

    Args:
        settings: the settings.
        application: the application.
    """

    def __init__(self, settings: Settings, application: WebApp) -> None:
        self._application = application
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
        """Stop at a signal. uvicorn calls this in its event loop, or in a handler of the signal."""
        super().handle_exit(sig, frame)
        self._application.backend.end_streams()


def check_settings(settings: Settings) -> None:
    """Raise `SettingsError` unless the server may listen where the settings say."""
    web = settings.web
    if web.tokens_file is None and not is_loopback(web.host):
        raise SettingsError(
            f"web.host = {web.host!r} is not this machine alone, and there are no tokens: set web.tokens_file, and "
            f"create a token with `worker web token`"
        )


def serve(settings: Settings) -> None:
    """Serve the API until a signal.

    Raises:
        SettingsError: the settings would open the API to others without a token, or the tokens cannot be read.
    """
    check_settings(settings)
    application = web_app(settings)
    application.check_tokens()
    logger.info("serving host=%s port=%d tokens=%s", settings.web.host, settings.web.port, settings.web.tokens_file)
    Server(settings, application).run()
