"""Ways to speak to the loopback Hub: code in a fresh process, or one bare request."""

import json
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from pathlib import Path

from .server import HubServer

ROOT = Path(__file__).parents[2]


def run_client(code: str, environment: dict[str, str], **values: object) -> dict:
    """Runs `code` in a fresh process, `values` being its variables, and returns what it left in `result`."""
    setup = f"import json\nglobals().update(json.loads({json.dumps(values)!r}))\nresult = {{}}\n"
    code = setup + textwrap.dedent(code) + "\nprint('\\n' + json.dumps(result))\n"
    environment = environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def request(
    hub: HubServer, method: str, url: str, body: object = None, token: str | None = None, headers: dict | None = None
) -> tuple[int, dict, bytes]:
    """One request without any client: status, headers and body of the answer."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    headers = (headers or {}) | ({"Authorization": f"Bearer {token}"} if token else {})
    url = url if url.startswith("http") else hub.url + url
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, data, headers, method=method), timeout=30) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()
