"""Continued pretraining: a corpus of plain text learned by a base, merged, as a new base."""
