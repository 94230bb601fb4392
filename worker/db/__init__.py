"""PostgreSQL: the engine, session scopes, the ledger's tables and their migrations."""
