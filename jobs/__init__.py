"""The jobs of this deployment: one file a subject; each is an example worth copying."""
