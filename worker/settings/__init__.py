"""Settings: the model, where values come from, and the URLs of servers."""

from worker.settings.model import Settings, load_settings

__all__ = ["Settings", "load_settings"]
