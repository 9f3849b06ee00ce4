"""What goes up, which requests are made again, and what is told: without a Hub. With one: tests/hub/test_push.py."""

import json
import shlex
import shutil
import time

import pytest
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session

from smd_hf import SMDError, hub_requests
from smd_hf.delta import SparseDelta
from smd_hf.hub import push_folder
from smd_hf.hub_files import model_files, saved_kind, stage_checkpoint, stage_deltas, stage_description, stage_model
from smd_hf.hub_requests import persistently, push_command, push_error
from smd_hf.models import load_model
from tests.test_trainer import make_dataset, make_trainer
from tests.tiny import save_tiny_checkpoint

SECRET = "a-secret-that-looks-like-no-token"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a real run, which has saved an ensemble and deltas, and a checkpoint."""
    root = tmp_path_factory.mktemp("run")
    data = make_dataset(40, 1), make_dataset(24, 2)
    save_tiny_checkpoint("resnet", root / "parent")
    make_trainer(
        root / "parent", root / "out", data, elitism=False, ensemble_size=2, save_children=3, save_steps=1
    ).train()
    return root / "out"


def answer(status, headers=None):
    """The error that a real client raises for an answer of the Hub."""
    request = get_session().build_request("POST", "http://127.0.0.1:9/api/repos/create")
    response = type(get_session().build_request).__call__ and _response(status, headers or {}, request)
    return HfHubHTTPError(f"{status} for it", response=response)


def _response(status, headers, request):
    import sys

    httpx = sys.modules[HTTPError.__module__.partition(".")[0]]
    return httpx.Response(status, headers=headers, request=request)


class Requests:
    """Raises one error after another, then answers."""

    def __init__(self, *errors):
        self.errors, self.count = list(errors), 0

    def __call__(self):
        self.count += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


@pytest.fixture
def waits(monkeypatch):
    """The pauses that are made, without making them."""
    pauses = []
    monkeypatch.setattr(hub_requests.time, "sleep", pauses.append)
    return pauses
