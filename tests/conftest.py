"""Settings that hold for all tests."""

from __future__ import annotations

from hypothesis import settings

# A limit on the time of one example fails on a busy machine, where nothing is wrong.
settings.register_profile("bakehouse", deadline=None)
settings.load_profile("bakehouse")
