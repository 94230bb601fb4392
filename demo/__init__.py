"""`python -m demo`: the main job on real data; a worker is killed in the middle, and nothing is doubled or lost."""
