"""The planner loop, its planners and the command line."""
