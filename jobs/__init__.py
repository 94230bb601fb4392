"""The jobs of this deployment: one file for each subject. Each job is an example to copy."""
