"""Ready-made jobs, one line each: names, arguments and cron are those of this deployment.

They delete and move rows, so none of them runs by itself: set MAINTENANCE_CRON, for example to "0 3 * * *", to run the
nightly ones. Each can be looked at first: `worker plan purge_old_posts`, `worker try purge_old_posts`.
"""

from __future__ import annotations

import os
from datetime import timedelta

from sqlalchemy import func, select

from jobs.models import Account, ArchivedPost, CountrySummary, Place, PlaceName, Post, User, UserDigest
from worker.maintenance import (
    archive,
    backfill_column,
    copy_table,
    dedupe,
    export_table,
    load_file,
    purge,
    recompute,
    validate_constraint,
)

NIGHTLY = os.environ.get("MAINTENANCE_CRON") or None
YEAR = timedelta(days=365)

purge_old_posts = purge(Post, older_than=3 * YEAR, by=Post.created_at, cron=NIGHTLY, size=10_000)
purge_dormant_users = purge(User, where=~User.is_active, older_than=5 * YEAR, by=User.last_seen_at, cron=NIGHTLY)
archive_old_posts = archive(Post, ArchivedPost, older_than=YEAR, by=Post.created_at, cron=NIGHTLY)
copy_posts = copy_table(Post, ArchivedPost, on_conflict="update")
fill_last_seen = backfill_column(
    User, User.last_seen_at, func.now(), where=User.is_active & User.last_seen_at.is_(None)
)
dedupe_place_names = dedupe(PlaceName, by=[PlaceName.place_id, PlaceName.folded])
recompute_digests = recompute(
    UserDigest,
    select(Post.author_id.label("user_id"), func.count().label("posts"))
    .group_by(Post.author_id)
    .order_by(Post.author_id),
    cron=NIGHTLY,
)
export_places = export_table(Place, "/tmp/longhaul-exports/places", format="jsonl", compress=True)  # noqa: S108
load_countries = load_file(CountrySummary, on_conflict="update")
validate_balances = validate_constraint(Account, "account_not_overdrawn")
