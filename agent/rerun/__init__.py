"""Re-verification: the bakeoff behind a stale decision, run again and held against what it said."""
