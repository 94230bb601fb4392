"""The HTTP API: `worker web`, or `app.mount("/longhaul", web_app(settings))` in an application of your own.

It needs the extra `web`: `pip install 'longhaul-worker[web]'`.
"""

from worker.web.application import WebApp, web_app

__all__ = ["WebApp", "web_app"]
