"""The engine: the only place that trains with torch. K adapters share one frozen base."""
