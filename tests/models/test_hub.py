"""Models that the hub does not give, asked of a server on loopback that answers as the hub does."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

# What the hub answers for each model: the status and the header that tells its kind of error.
ANSWERS = {
    "owner/gated": (403, "GatedRepo"),
    "owner/misspelt": (401, "RepoNotFound"),
    "owner/there": (404, "RevisionNotFound"),
}
ASK = """
import sys
from sami_pipeline.errors import InputError
from sami_pipeline.models import hub
for location in sys.argv[1:]:
    try:
        hub.check(location)
        print("there")
    except InputError as error:
        print(error)
"""


class Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        name = "/".join(self.path.split("/")[3:5])
        status, kind = ANSWERS[name]
        if name == "owner/there" and "nowhere" not in self.path:
            status = 200
        body = json.dumps({"id": name, "modelId": name, "sha": "0" * 40, "siblings": []}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        if status != 200:
            self.send_header("X-Error-Code", kind)
            self.send_header("X-Error-Message", kind)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def ask(tmp_path):
    """Return a function that checks models at an address, in a process that reads it at start."""

    def run(address: str, *locations: str, **variables: str) -> list[str]:
        environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE",)}
        environment |= {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path)} | variables
        asked = subprocess.run(
            [sys.executable, "-c", ASK, *locations], env=environment, capture_output=True,
            text=True, timeout=120, check=True,
        )  # fmt: skip
        return asked.stdout.splitlines()

    return run


def test_what_the_hub_does_not_give_is_one_line_with_the_remedy(ask):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    gated, misspelt, revision, there = ask(
        address, "owner/gated", "owner/misspelt", "owner/there@nowhere", "owner/there"
    )
    server.shutdown()
    server.server_close()
    assert gated.startswith("hub:owner/gated: is gated") and "accept its terms" in gated
    assert "is not on the hub, or private; correct OWNER/NAME" in misspelt
    assert "has no revision 'nowhere'" in revision
    assert there == "there"
    (unreachable,) = ask(address, "owner/there")
    assert "the hub can't be reached" in unreachable and "folder:PATH" in unreachable
    (offline,) = ask(address, "owner/there", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE forbids" in offline and "hf download owner/there" in offline
