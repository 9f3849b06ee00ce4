"""A Hub that is busy, slow or down while a model and a data set are loaded from it: waited for, then a clear end."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.test_trainer import make_dataset
from tests.tiny import save_tiny_checkpoint

from .clients import run_client
from .server import TOKEN, HubServer

pytestmark = pytest.mark.slow

# What happens to the requests for the files of a model or a data set: fate, how often, delay in seconds
FAULTS = {
    "busy": [(429, 2, 0), (500, 1, 0), (503, 1, 0)],
    "slow": [(None, 1, 4)],
    "down": [(500, 10**6, 0)],
    "crowded": [(429, 10**6, 0)],
    "closed": [("close", 10**6, 0)],
}

CLIENT = """
    import contextlib, io
    import torch
    from smd_hf.cli.main import main

    torch.set_num_threads(1)

    def evaluate(model, data):
        arguments = ["evaluate", "--model_name_or_path", f"tester/{model}", "--dataset_name", f"tester/{data}"]
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            code = main(arguments)
        return [code, out.getvalue(), err.getvalue()]

    for name in faults:
        result[f"model {name}"] = evaluate(name, "data")
        result[f"data {name}"] = evaluate("model", f"data-{name}")
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    root = tmp_path_factory.mktemp("load")
    checkpoint = Path(save_tiny_checkpoint("resnet", root / "model"))
    (root / "data").mkdir()
    make_dataset(12, 1).to_parquet(root / "data" / "validation.parquet")
    with HubServer() as hub:
        hub.add_repository("tester/model", checkpoint)
        hub.add_repository("tester/data", root / "data", repo_type="dataset")
        for name, faults in FAULTS.items():
            hub.add_repository(f"tester/{name}", checkpoint)
            hub.add_repository(f"tester/data-{name}", root / "data", repo_type="dataset")
            for fate, times, delay in faults:
                headers = {"Retry-After": "0"} if isinstance(fate, int) else None
                for place in (rf"/tester/{name}/resolve/", rf"/datasets/tester/data-{name}[/?]"):
                    hub.fail_next(rf"(GET|HEAD) .*{place}", fate, times=times, headers=headers, delay=delay)
        timeouts = {"HF_HUB_ETAG_TIMEOUT": "2", "HF_HUB_DOWNLOAD_TIMEOUT": "2"}
        # Most of the time is spent waiting.
        with ThreadPoolExecutor() as pool:
            shares = [list(FAULTS)[:3], list(FAULTS)[3:]]
            clients = [pool.submit(run_client, CLIENT, hub.environment() | timeouts, faults=share) for share in shares]
            yield {name: value for client in clients for name, value in client.result().items()}


@pytest.mark.parametrize("name", ["busy", "slow"])
@pytest.mark.parametrize("what", ["model", "data"])
def test_what_passes_is_waited_for(what, name, loaded):
    code, out, err = loaded[f"{what} {name}"]
    assert code == 0, err
    assert "accuracy" in out


@pytest.mark.parametrize("name, reason", [("down", "500"), ("crowded", "429"), ("closed", "breaks off")])
@pytest.mark.parametrize("what", ["model", "data"])
def test_what_stays_is_one_paragraph_that_says_what_to_do(what, name, reason, loaded):
    code, out, err = loaded[f"{what} {name}"]
    assert code == 2 and out == ""
    *waiting, told = err.splitlines()
    # huggingface_hub says itself that it asks again, from some version on and for some requests.
    assert all(
        "thrown while requesting" in line or "before retry" in line or "Retrying in" in line for line in waiting
    )
    assert told.startswith("smd-hf evaluate: error: ") and reason in told and "try again" in told
    assert "Traceback" not in err
    assert f"tester/{'data-' if what == 'data' else ''}{name}" in err and TOKEN not in err
