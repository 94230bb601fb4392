"""PostgreSQL and Valkey from wheels, for the demo, for tests and for a laptop; never for production."""

from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.services import Services, services
from worker.embedded.valkey import EmbeddedValkey

__all__ = ["EmbeddedPostgres", "EmbeddedValkey", "Services", "services"]
