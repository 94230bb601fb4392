"""The parts of responses to orders: what each has changed."""

from __future__ import annotations

from pydantic import Field

from worker.web.fields import Text, View


class EnqueuedView(View):
    """A run that was enqueued."""

    id: Text
    job: Text
    is_new: bool = Field(description="False if the run was known: by its id, its `Idempotency-Key`, or as unique.")


class TargetsView(View):
    """The effect of an order."""

    changed: list[Text]
    unchanged: list[Text] = Field(default=[], description="Names to which the order does not apply, e.g. ended runs.")


class PacesView(TargetsView):
    """The effect of an order of a pace."""

    rows_per_second: float | None
    before: list[float | None] = Field(description="The pace that was set before, in the order of `changed`.")


class RetriedRowsView(TargetsView):
    """The effect of an order to process quarantined rows again."""

    rows: int = Field(description="Rows that the new runs process.")


class CountView(View):
    """How many entries an order has changed."""

    changed: int
