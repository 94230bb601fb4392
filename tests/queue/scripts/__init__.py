"""Each Lua script alone, on a real server: its branches, and the races that its header names."""
