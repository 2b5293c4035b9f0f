"""The report of an iteration: one HTML page that needs nothing beside it, and one picture."""
