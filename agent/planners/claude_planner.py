"""The Claude planner: candidates proposed by a model that reads what was tried and why it failed."""

from __future__ import annotations

import time
from collections.abc import Callable

from agent.plan import Plan, PlanContext
from agent.planners.candidates import CandidateFilter
from agent.planners.conversation import Conversation
from agent.planners.messages_client import MessagesServer, check_server, open_client
from agent.planners.metering import RequestDebits
from agent.planners.planner import PlannerCosts
from agent.planners.planner_tools import Desk, make_tools
from agent.planners.prompt import PlannerPrompt, build_prompt
from agent.planners.quoting import cut
from tools.errors import PlannerError, PlannerOutageError
from tools.task import PlannerPrices

__all__ = ["ClaudePlanner"]


class ClaudePlanner:
    """Asks a model over the Messages API: Claude, or any server that speaks it.

    The model reads the context and may look things up; all that it can do is hand in patches of
    the allow-list, checked as if a stranger had sent them. What it was refused stands in the
    plan's notes.
    """

    def __init__(
        self,
        model: str,
        *,
        server: MessagesServer | None = None,
        turns: int = 8,
        max_tokens: int = 16_384,
        max_cost_ratio: float = 4.0,
        time_limit_s: float = 1800.0,
        prices: PlannerPrices | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a planner.

        Args:
            model: Name under which the server knows the model.
            server: Who is asked; None is the server that the environment names.
            turns: Most replies a plan, look-ups included; one more where none handed in a plan.
            max_tokens: Most tokens of a reply.
            max_cost_ratio: Most that a candidate may cost, the incumbent being 1.
            time_limit_s: Most seconds that the replies of a plan may take.
            prices: What the tokens cost; None leaves the dollars unknown.
            clock: Seconds that only grow.
        Raises:
            PlannerError: a setting is outside its range, or no key is at hand.
            MissingExtraError: the package anthropic is not installed.
        """
        if not model or turns < 2 or max_tokens < 1 or not max_cost_ratio > 0 or not time_limit_s > 0:
            raise PlannerError(
                f"model {model!r}, turns {turns}, max_tokens {max_tokens}, max_cost_ratio {max_cost_ratio}, "
                f"time_limit_s {time_limit_s}: a name, 2 or more turns, and numbers above 0 are needed"
            )
        self.model = model
        self.server = server or MessagesServer()
        self.turns, self.max_tokens, self.max_cost_ratio = turns, max_tokens, max_cost_ratio
        self.time_limit_s, self.prices, self._clock = time_limit_s, prices, clock
        check_server(self.server)

    @property
    def name(self) -> str:
        """Its name in decisions and commits, the model's included: another model is another planner."""
        return f"claude/{self.model}"[:64]

    @property
    def costs(self) -> PlannerCosts:
        """What asking the model costs."""
        return PlannerCosts(self.prices, self.time_limit_s)

    def plan(self, context: PlanContext) -> Plan:
        """Return the model's plan.

        Raises:
            PlannerOutageError: the server cannot be asked, or no usable plan came twice.
            PlannerError: the budget has no trial left.
            BudgetError: a request does not fit into what is left of the budget.
        """
        n_wanted, left = CandidateFilter(context, self.max_cost_ratio).n_wanted(), context.budget_left
        turns = self.turns if left.turns is None else max(1, min(self.turns, left.turns))
        seconds = self.time_limit_s if left.wall_s is None else min(self.time_limit_s, left.wall_s)
        prompt = build_prompt(context, n_wanted=n_wanted, turns=turns, max_cost_ratio=self.max_cost_ratio)
        desk = Desk(context, self.max_cost_ratio)
        meter = context.meter
        debits = None if meter is None else RequestDebits(meter, self.prices, self.max_tokens)
        with open_client(self.server, debits) as client:
            talk = Conversation(
                client=client,
                model=self.model,
                desk=desk,
                tools=make_tools(desk, context.evidence),
                turns=turns,
                max_tokens=self.max_tokens,
                deadline=self._clock() + seconds,
                clock=self._clock,
                debits=debits,
            )
            talk.run(prompt)
        return self._build_plan(desk, talk, prompt)

    def _build_plan(self, desk: Desk, talk: Conversation, prompt: PlannerPrompt) -> Plan:
        found = desk.accepted
        refused = [f"refused: {refusal}" for refusal in desk.refusals]
        usage = talk.usage.priced(self.prices)
        if found is None:
            why = "; ".join([*refused, *talk.nudges]) or "no plan was handed in"
            raise PlannerOutageError(cut(f"{self.model} returned no usable plan: {why} ({usage})", 3000))
        left_out = prompt.n_trials_left_out
        notes = [
            found.notes,
            *refused,
            *([f"{left_out} older trials were not in the prompt"] if left_out else []),
            str(usage),
        ]
        return Plan(
            planner=self.name,
            hypothesis=found.hypothesis,
            proposals=found.proposals,
            expected_gain=found.expected_gain,
            notes=cut("\n".join(note for note in notes if note), 8000),
            data_request=found.data_request,
            background_additions=found.background_additions,
            usage=usage,
        )
