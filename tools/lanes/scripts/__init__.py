"""Launch scripts that run inside the containers, where only this package's own copy is."""
