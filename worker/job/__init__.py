"""Jobs: definition, arguments, schedule, limits, and the registry that finds them."""
