"""The core: every primitive of the flywheel, usable from plain Python."""
