"""The table of operations: each path of the API, with its role, models and handler."""

from __future__ import annotations

from worker.web import (
    bodies,
    cron_reads,
    effects,
    ended_runs,
    event_list,
    events,
    job_history,
    job_looks,
    job_views,
    letter_reads,
    orders,
    outbox,
    queue_reads,
    run_reads,
    views,
)
from worker.web.fields import Page, PageQuery
from worker.web.operations import Operation

READS = (
    Operation(
        *("GET", "/overview", "show_overview", "queues", "read", "Show queues, workers and the first runs"),
        queue_reads.show_overview,
        views.OverviewView,
    ),
    Operation(
        *("GET", "/runs", "list_runs", "runs", "read", "List the runs of the ledger, newest first"),
        run_reads.list_runs,
        Page[views.RunView],
        query=bodies.RunsQuery,
    ),
    Operation(
        *("GET", "/runs/{run_id}", "show_run", "runs", "read", "Show a run, of the ledger or of Redis alone"),
        run_reads.show_run,
        views.RunDetail,
        problems=(404,),
    ),
    Operation(
        *("GET", "/runs/{run_id}/steps", "list_steps", "runs", "read", "List the steps of a run"),
        run_reads.list_steps,
        Page[views.StepView],
        problems=(404,),
    ),
    Operation(
        *("GET", "/runs/{run_id}/story", "list_story", "runs", "read", "List the events and the orders of a run"),
        run_reads.list_story,
        Page[views.EventView],
        problems=(404,),
    ),
    Operation(
        *("GET", "/runs/{run_id}/batches", "list_batches", "runs", "read", "List rows, batches and rate over time"),
        run_reads.list_batches,
        Page[views.BatchView],
        problems=(404,),
    ),
    Operation(
        *("GET", "/runs/{run_id}/hands", "list_hands", "runs", "read", "List the hands and ranges of a walk"),
        run_reads.list_hands,
        views.HandsView,
        problems=(404,),
    ),
    Operation(
        *("GET", "/runs/{run_id}/log", "list_log", "runs", "read", "List the last lines of a run's log, oldest first"),
        run_reads.list_log,
        Page[views.LogLineView],
        problems=(404, 409),
    ),
    Operation(
        *("GET", "/queues", "list_queues", "queues", "read", "List the queues"),
        queue_reads.list_queues,
        Page[views.QueueView],
    ),
    Operation(
        *("GET", "/history", "show_history", "queues", "read", "Show the last hour of the queues by the minute"),
        queue_reads.show_history,
        views.HistoryView,
    ),
    Operation(
        *("GET", "/workers", "list_workers", "queues", "read", "List the workers"),
        queue_reads.list_workers,
        Page[views.WorkerView],
    ),
    Operation(
        *("GET", "/jobs", "list_jobs", "jobs", "read", "List the jobs, with the JSON Schema of their arguments"),
        queue_reads.list_jobs,
        Page[job_views.JobView],
    ),
    Operation(
        *("GET", "/jobs/{job}", "show_job", "jobs", "read", "Show a job"),
        queue_reads.show_job,
        job_views.JobView,
        problems=(404,),
    ),
    Operation(
        *("GET", "/jobs/{job}/runs", "list_job_runs", "jobs", "read", "List the last hundred runs of a job"),
        job_history.list_job_runs,
        Page[views.JobRunView],
        problems=(404,),
    ),
    Operation(
        *("GET", "/ended-runs", "list_ended", "runs", "read", "List the last ten runs that ended, without short ones"),
        ended_runs.list_ended,
        Page[views.EndedRunView],
    ),
    Operation(
        *("GET", "/cron", "list_cron", "jobs", "read", "List the cron lines, by their next due time"),
        cron_reads.list_cron,
        Page[job_views.CronView],
    ),
    Operation(
        *("GET", "/limits", "list_limits", "jobs", "read", "List limits and paces"),
        queue_reads.list_limits,
        Page[views.LimitView],
    ),
    Operation(
        *("GET", "/dead-letters", "list_dead_letters", "failures", "read", "List the dead letters, newest first"),
        letter_reads.list_dead_letters,
        views.DeadLettersView,
        query=bodies.DeadLettersQuery,
    ),
    Operation(
        *("GET", "/dead-letters/{run_id}", "show_dead_letter", "failures", "read", "Show a dead letter"),
        letter_reads.show_dead_letter,
        views.DeadLetterDetail,
        problems=(404,),
    ),
    Operation(
        *("GET", "/quarantine", "list_quarantine", "failures", "read", "List the quarantined rows, newest first"),
        letter_reads.list_quarantine,
        Page[views.QuarantinedRowView],
        query=bodies.QuarantineQuery,
    ),
    Operation(
        *("GET", "/quarantine/{row_id}", "show_quarantined_row", "failures", "read", "Show a quarantined row"),
        letter_reads.show_quarantined_row,
        views.QuarantinedRowView,
        problems=(404,),
    ),
    Operation(
        *("GET", "/outbox", "list_outbox", "failures", "read", "List the rows of the outbox, newest first"),
        outbox.list_outbox,
        views.OutboxView,
        query=bodies.OutboxQuery,
    ),
    Operation(
        *("GET", "/orders", "list_orders", "orders", "read", "List who has ordered what, newest first"),
        letter_reads.list_orders,
        Page[views.OrderView],
        query=PageQuery,
    ),
    Operation(
        *("GET", "/events/recent", "list_events", "events", "read", "List the last events, newest first"),
        event_list.list_events,
        views.EventsView,
        query=bodies.EventListQuery,
    ),
    Operation(
        *("GET", "/doctor", "run_checks", "queues", "read", "Run the checks of `worker doctor`"),
        queue_reads.run_checks,
        Page[views.FindingView],
    ),
)

STREAMS = (
    Operation(
        *("GET", "/events", "stream_events", "events", "read", "Stream the events of runs and workers"),
        events.stream_events,
        None,
        query=bodies.EventsQuery,
        content="events",
    ),
    Operation(
        *("GET", "/runs/{run_id}/events", "stream_run", "events", "read", "Stream a run until it has ended"),
        events.stream_run,
        None,
        content="events",
        statuses={204: "The run has ended, and the client has its events: it need not come back."},
        problems=(404,),
    ),
)

ORDERS = (
    Operation(
        *("POST", "/runs", "enqueue", "runs", "enqueue", "Enqueue a run"),
        orders.enqueue,
        effects.EnqueuedView,
        body=bodies.EnqueueBody,
        statuses={201: "The run was enqueued."},
        problems=(404, 409),
        has_idempotency_key=True,
    ),
    Operation(
        *("POST", "/cron/{job}/run", "run_cron_job", "jobs", "operate", "Enqueue an extra run of a cron job now"),
        orders.run_cron_job,
        effects.EnqueuedView,
        body=bodies.RunNowBody,
        statuses={201: "The run was enqueued."},
        problems=(404, 409),
    ),
    Operation(
        *(
            "POST",
            "/jobs/{job}/plan",
            "plan_job",
            "jobs",
            "enqueue",
            "Show what a job would do, without changing anything",
        ),
        job_looks.plan_job,
        job_looks.PlanView,
        body=bodies.PlanBody,
        problems=(404,),
    ),
    Operation(
        *(
            "POST",
            "/jobs/{job}/try",
            "try_job",
            "jobs",
            "enqueue",
            "Run some batches of a job, and roll each of them back",
        ),
        job_looks.try_job,
        job_looks.TrialView,
        body=bodies.TryBody,
        problems=(404,),
    ),
    Operation(
        *("POST", "/orders/pause", "pause", "orders", "operate", "Pause runs, jobs, queues or all"),
        orders.pause,
        effects.TargetsView,
        body=bodies.PauseBody,
        problems=(404, 409),
    ),
    Operation(
        *("POST", "/orders/resume", "resume", "orders", "operate", "Resume what was paused"),
        orders.resume,
        effects.TargetsView,
        body=bodies.PauseBody,
        problems=(409,),
    ),
    Operation(
        *("POST", "/orders/pace", "pace", "orders", "operate", "Limit the pace of walks"),
        orders.pace,
        effects.PacesView,
        body=bodies.PaceBody,
        problems=(409,),
    ),
    Operation(
        *("POST", "/orders/limit", "limit", "orders", "operate", "Limit the runs of a job or a queue"),
        orders.limit,
        effects.TargetsView,
        body=bodies.LimitBody,
        problems=(409,),
    ),
    Operation(
        *("POST", "/orders/cancel", "cancel", "orders", "operate", "Cancel runs"),
        orders.cancel,
        effects.TargetsView,
        body=bodies.RunsBody,
        problems=(409,),
    ),
    Operation(
        *("POST", "/orders/retry", "retry", "orders", "operate", "Run ended runs again"),
        orders.retry,
        effects.TargetsView,
        body=bodies.RetryBody,
        problems=(409,),
    ),
    Operation(
        *("POST", "/orders/drain", "drain", "orders", "operate", "Drain workers"),
        orders.drain,
        effects.TargetsView,
        body=bodies.DrainBody,
        problems=(409,),
    ),
    Operation(
        *("POST", "/dead-letters/retry", "retry_dead_letters", "failures", "operate", "Run dead letters again"),
        orders.retry_dead_letters,
        effects.TargetsView,
        body=bodies.DeadLettersBody,
        problems=(409,),
    ),
    Operation(
        *("POST", "/dead-letters/delete", "delete_dead_letters", "failures", "operate", "Delete dead letters"),
        orders.delete_dead_letters,
        effects.TargetsView,
        body=bodies.DeadLettersBody,
        problems=(409,),
    ),
    Operation(
        *("POST", "/quarantine/retry", "retry_quarantined", "failures", "operate", "Process quarantined rows again"),
        orders.retry_quarantined,
        effects.RetriedRowsView,
        body=bodies.RetryRowsBody,
        problems=(409,),
    ),
    Operation(
        *("POST", "/quarantine/discard", "discard_quarantined", "failures", "operate", "Delete quarantined rows"),
        orders.discard_quarantined,
        effects.CountView,
        body=bodies.DiscardBody,
        problems=(409,),
    ),
    Operation(
        *("POST", "/outbox/retry", "retry_outbox", "failures", "operate", "Try refused rows of the outbox again"),
        outbox.retry_outbox,
        effects.CountView,
        body=bodies.OutboxBody,
    ),
    Operation(
        *("POST", "/outbox/delete", "delete_outbox", "failures", "operate", "Delete refused rows of the outbox"),
        outbox.delete_outbox,
        effects.CountView,
        body=bodies.OutboxBody,
    ),
)

MONITORING = (
    Operation(
        *("GET", "/metrics", "show_metrics", "monitoring", "read", "Show the metrics of queues, outbox and servers"),
        queue_reads.show_metrics,
        None,
        content="text",
        is_for_monitors=True,
    ),
    Operation(
        *("GET", "/healthz", "check_liveness", "monitoring", None, "Show that the server lives"),
        queue_reads.check_liveness,
        views.HealthView,
        is_for_monitors=True,
    ),
    Operation(
        *("GET", "/readyz", "check_readiness", "monitoring", None, "Show whether servers and ledger are ready"),
        queue_reads.check_readiness,
        views.HealthView,
        statuses={503: "A check has failed."},
        is_for_monitors=True,
    ),
)

OPERATIONS: tuple[Operation, ...] = (*READS, *STREAMS, *ORDERS, *MONITORING)
