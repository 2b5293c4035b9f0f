"""The server's command line: `bakehouse mcp`, or `python -P -m mcp_server`, which starts faster."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mcp_server.settings import FREE_ROWS, TOOL_NAMES, Settings
from tools.errors import BakehouseError, McpError

_SWITCH_S: Final = 0.0005


def main(argv: Sequence[str] | None = None) -> int:
    """Serve, or print or write a client's configuration; return an exit code."""
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["install"]:
            from mcp_server.install import install

            sys.stdout.write(install(_install_parser().parse_args(arguments[1:])) + "\n")
        else:
            _serve(_server_parser().parse_args(arguments))
    except BakehouseError as err:
        sys.stderr.write(f"error ({type(err).__name__}): {err}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Add what the operator decides."""
    parser.add_argument(
        "--root",
        action="append",
        type=Path,
        metavar="FOLDER",
        help="a workspace, or a folder that holds workspaces; nothing outside is touched (default: here)",
    )
    parser.add_argument("--read-only", action="store_true", help="serve only what changes nothing")
    parser.add_argument("--tools", metavar="A,B", help=f"serve these alone, of: {', '.join(TOOL_NAMES)}")
    parser.add_argument("--exclude-tools", metavar="A,B", help="serve all but these")
    parser.add_argument(
        "--allow-expensive",
        action="store_true",
        help="do not ask before long trainings and before an export is replaced",
    )
    parser.add_argument(
        "--free-rows",
        type=int,
        default=FREE_ROWS,
        metavar="N",
        help="rows, passes included, that a job may see before somebody is asked (default: %(default)s)",
    )
    parser.add_argument(
        "--lanes", default="local", metavar="A,B", help="lanes that recipes may run on (default: %(default)s)"
    )
    parser.add_argument(
        "--model-dir",
        action="append",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="base models may also be loaded from here",
    )
    parser.add_argument("--http", metavar="HOST:PORT", help="serve HTTP instead of stdio; needs a token")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="lines of `name token`, mode 600")
    parser.add_argument(
        "--allowed-host", action="append", default=[], metavar="NAME", help="a Host header that is right"
    )


def read_settings(options: argparse.Namespace) -> Settings:
    """Return the operator's decisions.

    Raises:
        McpError: an option is wrong.
    """
    chosen = _names(options.tools) if options.tools is not None else TOOL_NAMES
    excluded = _names(options.exclude_tools or "")
    unknown = sorted(set(excluded) - set(TOOL_NAMES))
    if unknown:
        raise McpError(f"--exclude-tools names {unknown}; allowed: {', '.join(TOOL_NAMES)}")
    lanes = _names(options.lanes)
    if not lanes or set(lanes) - {"local", "nemo", "unsloth", "ray"}:
        raise McpError(f"--lanes is {options.lanes!r}; allowed: local, nemo, unsloth, ray")
    if options.free_rows < 0:
        raise McpError(f"--free-rows is {options.free_rows}; a whole number from 0 is allowed")
    return Settings(
        roots=tuple(Path(root).expanduser().resolve() for root in options.root or [Path.cwd()]),
        read_only=options.read_only,
        tools=tuple(name for name in chosen if name not in excluded),
        allow_expensive=options.allow_expensive,
        free_rows=options.free_rows,
        lanes=lanes,
        model_dirs=tuple(Path(folder).expanduser().resolve() for folder in options.model_dir),
    )


def _serve(options: argparse.Namespace) -> None:
    settings = read_settings(options)
    # A look at a job gives the interpreter back at each file that it opens, and waits this long for it.
    sys.setswitchinterval(_SWITCH_S)
    if options.http is None:
        if options.token_file is not None or options.allowed_host:
            raise McpError("--token-file and --allowed-host belong to --http HOST:PORT")
        # A job must not inherit a token that this server does not even use.
        os.environ.pop("BAKEHOUSE_MCP_TOKEN", None)
        with _without_collections():
            from mcp_server.app import build_server

            server = build_server(settings)
        server.run("stdio")
        return
    with _without_collections():
        from mcp_server.http_server import Address, build_app, serve
        from mcp_server.tokens import load_tokens

        address = Address.parse(options.http)
        tokens = load_tokens(options.token_file, os.environ)
        app = build_app(settings, address, tokens, allowed_hosts=tuple(options.allowed_host))
    serve(app, address)


@contextmanager
def _without_collections() -> Iterator[None]:
    """Load what stays for good: looking through it for garbage takes a third of the start."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _server_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bakehouse mcp",
        description="Serve the flywheel to MCP clients, over stdio by default. "
        "`bakehouse mcp install` configures a client.",
    )
    add_server_options(parser)
    return parser


def _install_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bakehouse mcp install", description="Print, or write, a client's configuration."
    )
    parser.add_argument("client", choices=("claude-code", "claude-desktop", "cursor", "vscode"))
    parser.add_argument("--write", action="store_true", help="write it into the client's own file")
    parser.add_argument("--file", type=Path, help="the file to write, in place of the client's own")
    parser.add_argument("--name", default="bakehouse", help="what the client calls the server")
    parser.add_argument("--ssh", metavar="HOST", help="run the server on this host, over SSH")
    parser.add_argument(
        "--remote-command",
        default="bakehouse",
        metavar="PATH",
        help="bakehouse on that host; ssh finds a bare name only where no login shell is needed "
        "(default: %(default)s)",
    )
    add_server_options(parser)
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
