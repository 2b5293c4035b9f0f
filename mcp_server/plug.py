"""What plugs the server into the command line, found there as an entry point."""

from typing import TYPE_CHECKING

from mcp_server.commands import main

if TYPE_CHECKING:
    import typer

__all__ = ["main", "register"]


def register(app: "typer.Typer") -> None:
    """Add `mcp` to the command line; its options are read by the server, so that both ways in agree."""
    # The command line runs `main` without all else that it has; typer would be loaded for nothing.
    import typer

    context = {"ignore_unknown_options": True, "allow_extra_args": True}

    @app.command(name="mcp", add_help_option=False, context_settings=context)
    def mcp(ctx: typer.Context) -> None:
        """Serve the flywheel's tools to MCP clients; `bakehouse mcp install` configures them."""
        code = main(ctx.args)
        if code:
            raise typer.Exit(code)
