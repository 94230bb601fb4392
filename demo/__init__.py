"""`python -m demo`: runs the main job on real data, kills a worker in the middle, and checks that no row is doubled or
lost."""
