"""The Ray lane: the local lane's worker on a node of a Ray cluster, its run folder kept here."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.errors import ModelError, TrainError
from tools.extras import require_extra
from tools.lanes.lane import LaunchPlan, Outcome
from tools.lanes.local import LocalLane, write_spec
from tools.lanes.ray.cluster import ADDRESS, check_address
from tools.lanes.ray.inputs import local_base
from tools.lanes.ray.resources import asked
from tools.recipe import Mode, TrainRecipe

__all__ = ["RayLane"]


class RayLane:
    """Runs one recipe on the cluster that RAY_ADDRESS names."""

    name = "ray"

    def prepare(
        self, recipe: TrainRecipe, mode: Mode, run_dir: Path, *, mid_eval: Mapping[str, Any] | None = None
    ) -> LaunchPlan:
        """Write a worker's spec into run_dir and return the command that has it run on a node.

        Raises:
            MissingExtraError: the extra `ray` is not installed.
            TrainError: the base model is no model, a file is missing, or a variable is malformed.
        """
        require_extra("ray", purpose="the ray lane")
        check_address(os.environ.get(ADDRESS, "").strip())
        asked(os.environ)
        try:
            local_base(recipe.base_model)
        except ModelError as err:
            raise TrainError(str(err)) from err
        spec_path = write_spec(recipe, mode, run_dir, mid_eval)
        return LaunchPlan(argv=(sys.executable, "-P", "-m", "tools.lanes.ray.driver", str(spec_path)))

    def outcome(self, run_dir: Path) -> Outcome | None:
        """Return what the worker wrote about its one member, None when nothing came back."""
        return LocalLane().outcome(run_dir)
