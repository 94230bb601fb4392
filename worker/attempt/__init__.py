"""One attempt of one job: context, control, cancellation, threads and processes."""
