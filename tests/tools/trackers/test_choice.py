"""Which trackers an environment asks for."""

from __future__ import annotations

import pytest

from tools.trackers.choice import chosen_trackers


def test_no_tracker_is_used_unasked():
    assert chosen_trackers({"HF_TOKEN": "x", "WANDB_PROJECT": "p", "WANDB_API_KEY": " "}) == ()


@pytest.mark.parametrize(
    ("variable", "value", "tracker"),
    [
        ("WANDB_API_KEY", "k", "wandb"),
        ("WANDB_MODE", "offline", "wandb"),
        ("TRACKIO_SPACE_ID", "me/space", "trackio"),
        ("TRACKIO_SERVER_URL", "http://localhost:7860", "trackio"),
        ("TRACKIO_DIR", "here", "trackio"),
        ("MLFLOW_TRACKING_URI", "sqlite:///m.db", "mlflow"),
    ],
)
def test_a_variable_of_its_own_chooses_each(variable, value, tracker):
    assert chosen_trackers({variable: value}) == (tracker,)


def test_several_can_be_asked_for_at_once_and_wandb_can_be_switched_off():
    both = {"WANDB_API_KEY": "k", "MLFLOW_TRACKING_URI": "sqlite:///m.db"}
    assert chosen_trackers(both) == ("wandb", "mlflow")
    assert chosen_trackers({**both, "WANDB_MODE": "disabled"}) == ("mlflow",)
