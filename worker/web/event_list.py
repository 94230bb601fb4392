"""The last events, as far as Redis has them."""

from __future__ import annotations

from collections.abc import Collection

from worker.web.bodies import EventListQuery
from worker.web.event_hub import Message, is_event_id, order_of
from worker.web.event_kinds import GROUPS
from worker.web.fields import invalid_cursor, make_cursor, read_cursor
from worker.web.operations import Call
from worker.web.run_reads import describe_event
from worker.web.views import EventsView, EventView


async def list_events(call: Call) -> EventsView:
    """Return a page of the events that Redis has, newest first."""
    query: EventListQuery = call.query
    place = read_cursor(query.cursor, str)
    if place is not None and not is_event_id(place[0]):
        raise invalid_cursor()
    log = call.backend.event_log
    events, has_brief = await log.list_all(), query.brief == "true"
    brief = set() if has_brief else {event.id for event in events if log.is_brief(event)}
    left_out = sum(event.id in brief and event.fields.get("event") == "succeeded" for event in events)
    kinds = None if query.event is None else GROUPS.get(query.event, (query.event,))
    found: list[EventView] = []
    for event in events:
        is_behind = place is None or order_of(event.id) < order_of(place[0])
        if is_behind and event.id not in brief and _is_chosen(event, query, kinds):
            found.append(describe_event(event))
            if len(found) == query.limit:
                return EventsView(items=found, left_out=left_out, next_cursor=make_cursor(event.id))
    return EventsView(items=found, left_out=left_out)


def _is_chosen(event: Message, query: EventListQuery, kinds: Collection[str] | None) -> bool:
    fields = event.fields
    if kinds is not None and fields.get("event") not in kinds:
        return False
    if query.job is not None and fields.get("job") != query.job:
        return False
    return query.search is None or query.search.lower() in " ".join(fields.values()).lower()
