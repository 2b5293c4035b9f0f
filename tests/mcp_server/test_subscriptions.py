"""Subscriptions to jobs: both eras, over stdio and HTTP, to a principal's own jobs alone."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.server.mcpserver import MCPServer
from mcp.shared.exceptions import MCPError
from mcp_types import ResourceUpdatedNotification

from mcp_server.job_watch import JobWatch
from mcp_server.owned_jobs import OwnedJobs
from mcp_server.settings import Settings
from mcp_server.subscribers import MAX_PER_SESSION, Subscribers
from mcp_server.workspaces import Confined
from tests.mcp_server.conftest import Serve, http
from tests.mcp_server.test_long_work import facts, sleeper
from tools.jobs import cancel_job
from tools.workspace import Workspace

pytestmark = [
    pytest.mark.anyio,
    # The client of the SDK warns of what revision 2026-07-28 dropped.
    pytest.mark.filterwarnings("ignore:resources/(un)?subscribe is removed"),
]


class Ears:
    """Keeps what a session was told, and wakes who waits for it."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self._news = anyio.Event()

    async def __call__(self, message: Any) -> None:
        if isinstance(message, ResourceUpdatedNotification):
            self.heard.append(str(message.params.uri))
            self._news.set()

    async def wait_for(self, uri: str) -> None:
        with anyio.fail_after(60):
            while uri not in self.heard:
                await self._news.wait()
                self._news = anyio.Event()


async def test_a_subscriber_over_stdio_hears_of_its_job_until_it_unsubscribes(
    over_stdio: StdioServerParameters, workspace: Workspace
) -> None:
    ears = Ears()
    first, second = sleeper(workspace), sleeper(workspace)
    async with Client(over_stdio, mode="legacy", message_handler=ears) as client:
        assert client.server_capabilities.resources.subscribe is True
        for job_id in (first, second):
            await client.subscribe_resource(f"job://{job_id}")
        await client.unsubscribe_resource(f"job://{second}")
        await facts(client, "cancel", job_id=second)
        await facts(client, "cancel", job_id=first)
        await ears.wait_for(f"job://{first}")
        (contents,) = (await client.read_resource(f"job://{first}")).contents
        assert json.loads(contents.text)["status"] == "cancelled"
    assert f"job://{second}" not in ears.heard


async def test_a_job_that_ends_at_once_after_the_subscription_is_not_missed(
    serve: Serve, workspace: Workspace
) -> None:
    ears = Ears()
    job_id = sleeper(workspace)
    async with Client(serve(), mode="legacy", message_handler=ears) as client:
        await client.subscribe_resource(f"job://{job_id}")
        cancel_job(workspace.jobs_dir, job_id, grace_s=1)
        await ears.wait_for(f"job://{job_id}")


async def test_over_http_a_subscriber_hears_of_its_own_jobs_alone(url: str, workspace: Workspace) -> None:
    ears = Ears()
    async with http("ada") as first, http("bob") as other:
        ada = Client(streamable_http_client(url, http_client=first), mode="legacy", message_handler=ears)
        bob = Client(streamable_http_client(url, http_client=other), mode="legacy")
        async with ada, bob:
            assert ada.server_capabilities.resources.subscribe is True
            mine = (await facts(ada, "train"))["job_id"]
            with pytest.raises(MCPError, match="no job"):
                await bob.subscribe_resource(f"job://{mine}")
            await ada.subscribe_resource(f"job://{mine}")
            await facts(ada, "cancel", job_id=mine)
            await ears.wait_for(f"job://{mine}")


async def test_over_http_a_listener_hears_of_its_own_jobs_alone(url: str, workspace: Workspace) -> None:
    async with http("ada") as first, http("bob") as other:
        ada = Client(streamable_http_client(url, http_client=first))
        bob = Client(streamable_http_client(url, http_client=other))
        async with ada, bob:
            theirs = (await facts(ada, "train", idempotency_key="a"))["job_id"]
            own = (await facts(bob, "train", idempotency_key="b"))["job_id"]
            uris = [f"job://{theirs}", f"job://{own}"]
            heard: list[str] = []
            with anyio.fail_after(60):
                async with bob.listen(resource_subscriptions=uris) as events:
                    await facts(ada, "cancel", job_id=theirs)
                    await facts(bob, "cancel", job_id=own)
                    async for event in events:
                        heard.append(event.uri)
                        if (await facts(bob, "poll", job_id=own, wait_s=0))["ended"]:
                            break
    assert set(heard) == {f"job://{own}"}


async def test_what_never_changes_or_is_not_there_cannot_be_subscribed_to(serve: Serve) -> None:
    async with Client(serve(), mode="legacy") as client:
        for uri in ("recipe://colours/current", "job://20261120T044900000000Z-train-1a2b3c/log", "job:x"):
            with pytest.raises(MCPError, match="job://ID does"):
                await client.subscribe_resource(uri)
        with pytest.raises(MCPError, match="poll without a job_id"):
            await client.subscribe_resource("job://nope")
        await client.unsubscribe_resource("job://nope")


async def test_a_session_has_a_bounded_number_of_subscriptions_and_takes_them_along(
    workspace: Workspace,
) -> None:
    uris = [f"test://{number}" for number in range(MAX_PER_SESSION + 1)]
    jobs = OwnedJobs(Confined(Settings(roots=(workspace.root,))))
    watch = JobWatch(jobs)
    server: MCPServer[Any] = MCPServer("small", subscriptions=watch.bus, lifespan=watch.lifespan)
    Subscribers(jobs, watch.bus, other_uris=uris).serve_on(server._lowlevel_server)
    async with Client(server, mode="legacy") as one, Client(server, mode="legacy") as two:
        for uri in uris[:-1]:
            await one.subscribe_resource(uri)
        await one.subscribe_resource(uris[0])
        with pytest.raises(MCPError, match="the most"):
            await one.subscribe_resource(uris[-1])
        await one.unsubscribe_resource(uris[0])
        await one.subscribe_resource(uris[-1])
        await two.subscribe_resource(uris[0])
        assert watch.bus.n_listeners == 2
        await two.unsubscribe_resource(uris[0])
        assert watch.bus.n_listeners == 1
    assert watch.bus.n_listeners == 0
