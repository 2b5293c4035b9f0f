"""The budget of a run: what it may spend, what it has spent, and what is left."""
