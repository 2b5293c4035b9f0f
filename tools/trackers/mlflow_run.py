"""MLflow: a run of the server or the database that MLFLOW_TRACKING_URI names."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any, Final

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from tools.trackers.tracker import Ending

__all__ = ["MlflowRun", "start"]

_TAG: Final = "bakehouse.run"
_STATUS: Final[dict[Ending, str]] = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
_MAX_PARAM: Final = 6000


class MlflowRun:
    """An open run of mlflow."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client = client
        self._run_id = run_id
        self._step = 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._step = step
        now_ms = time.time_ns() // 1_000_000
        self._client.log_batch(
            self._run_id, metrics=[Metric(key, value, now_ms, step) for key, value in values.items()]
        )

    def summarise(self, values: Mapping[str, float]) -> None:
        self.log(self._step, values)

    def flush(self) -> None:
        """Every call has been answered already."""

    def finish(self, ending: Ending) -> None:
        self._client.set_terminated(self._run_id, status=_STATUS[ending])


def start(*, name: str, run_id: str, is_known: bool, config: Mapping[str, Any], folder: str) -> MlflowRun:
    """Open a run in the experiment `MLFLOW_EXPERIMENT_NAME`, by default `bakehouse`."""
    client = MlflowClient()
    experiment = _experiment(client, os.environ.get("MLFLOW_EXPERIMENT_NAME") or "bakehouse")
    if is_known:
        found = client.search_runs([experiment], filter_string=f"tags.`{_TAG}` = '{run_id}'", max_results=1)
        if found:
            client.update_run(found[0].info.run_id, status="RUNNING")
            return MlflowRun(client, found[0].info.run_id)
    run = client.create_run(experiment, run_name=name, tags={_TAG: run_id})
    params = [Param(key, _text(value)) for key, value in config.items()]
    client.log_batch(run.info.run_id, params=params)
    return MlflowRun(client, run.info.run_id)


def _experiment(client: Any, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:
            # Another process was quicker.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:_MAX_PARAM]
