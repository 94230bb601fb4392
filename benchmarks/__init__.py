"""Side by side with hand-written code, in one run; one table for each benchmark of this project."""
