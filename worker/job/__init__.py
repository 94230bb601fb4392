"""What a job is: its definition, arguments, schedule, limits, and the registry that finds it."""
