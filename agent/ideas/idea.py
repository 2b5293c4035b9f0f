"""An idea: a change of the recipe, or rows to be made, with the grounds that it rests on."""

from __future__ import annotations

import json
from collections.abc import Hashable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agent.plan import DataRequest, Gain, Sentence
from tools.patch import RecipePatch
from tools.wording import fold_words

__all__ = ["Idea", "Reference", "ReferenceKind"]

ReferenceKind = Literal["paper", "web", "decision", "trial", "doc"]


class Reference(BaseModel):
    """What an idea rests on. It is text: an address in it is never opened."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ReferenceKind
    """`decision` and `trial` name what this workspace knows, `doc` a document of it."""
    ref: Annotated[str, Field(min_length=1, max_length=300)]
    """A paper's title or number, an address, an entry's slug, a trial's id, a file's name."""
    says: Annotated[str, Field(max_length=600)] = ""
    """What it says that matters here."""

    def __str__(self) -> str:
        return f"{self.kind} {self.ref}" + (f" ({self.says})" if self.says else "")


class Idea(BaseModel):
    """One thing to try: exactly one of a patch of the incumbent and a request for rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hypothesis: Sentence
    expected_gain: Gain | None = None
    """Expected change of the mean selection score; None where nobody said."""
    patch: RecipePatch | None = None
    data_request: DataRequest | None = None
    references: Annotated[tuple[Reference, ...], Field(max_length=12)] = ()

    @model_validator(mode="after")
    def _is_one_thing(self) -> Idea:
        if (self.patch is None) == (self.data_request is None):
            raise ValueError("an idea has either a patch or a data_request")
        return self

    @property
    def key(self) -> Hashable:
        """What two ideas share exactly when they ask for the same."""
        if self.patch is not None:
            return json.dumps(self.patch.model_dump(mode="json"), sort_keys=True)
        return fold_words(self.data_request.focus) if self.data_request else None

    def __str__(self) -> str:
        if self.data_request is not None:
            return f"{self.data_request.rows} rows: {self.data_request.focus}"
        return str(self.patch)
