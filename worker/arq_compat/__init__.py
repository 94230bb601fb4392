"""A stand-in for `arq.Worker`: arq's arguments, functions and hooks on Longhaul's queue."""

from worker.arq_compat.worker import Worker, create_worker, get_kwargs, run_worker

__all__ = ["Worker", "create_worker", "get_kwargs", "run_worker"]
