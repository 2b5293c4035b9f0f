"""Generators: who answers conversations, a model loaded here or one behind an endpoint."""
