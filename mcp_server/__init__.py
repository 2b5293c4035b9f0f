"""The MCP server: a thin face of the same primitives."""
