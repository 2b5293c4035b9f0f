"""Ideas: what might be tried next, on what grounds, and what became of it."""
