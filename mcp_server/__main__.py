"""`python -P -m mcp_server`: the server as clients start it."""

import sys

from mcp_server.commands import main

if __name__ == "__main__":
    sys.exit(main())
