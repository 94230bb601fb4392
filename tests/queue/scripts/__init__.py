"""Each Lua script alone: its branches, and the races that its head names, on a real server."""
