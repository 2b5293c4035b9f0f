"""Settings that hold for all tests."""

from __future__ import annotations

import signal

from hypothesis import settings

# A limit on the time of one example fails on a busy machine, where nothing is wrong.
settings.register_profile("bakehouse", deadline=None)
settings.load_profile("bakehouse")

# A shell starts what it puts in the background with interrupts ignored, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
