#!/bin/sh
# Puts Debian's PgBouncer on this machine for `make test-long`, where that can be done; its tests are skipped without.
set -eu

if [ -n "${PGBOUNCER:-}" ] || command -v pgbouncer >/dev/null || [ -x /usr/sbin/pgbouncer ]; then
    exit 0
fi
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    echo "test-long: installing pgbouncer" >&2
    apt-get install -y -qq --no-install-recommends pgbouncer >/dev/null ||
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends pgbouncer >/dev/null; } || true
fi
command -v pgbouncer >/dev/null || echo "test-long: no pgbouncer here, its tests are skipped: apt-get install pgbouncer" >&2
