"""AWS's notice, from a metadata service of our own to what Ray is told."""

from __future__ import annotations

import datetime
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import spot_notice


class Metadata(http.server.BaseHTTPRequestHandler):
    """Answers as AWS does: nobody without a token, 404 until the third question."""

    asked = 0
    going = datetime.datetime.min

    def do_PUT(self) -> None:
        assert self.path == "/latest/api/token"
        assert int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) > 0
        self._answer(200, "a-token")

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != "a-token":
            return self._answer(401, "")
        type(self).asked += 1
        going = json.dumps({"action": "terminate", "time": self.going.strftime("%Y-%m-%dT%H:%M:%SZ")})
        return self._answer(*((404, "") if self.asked < 3 else (200, going)))

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[str]:
    Metadata.asked = 0
    Metadata.going = datetime.datetime.now(datetime.UTC).replace(microsecond=0) + datetime.timedelta(seconds=120)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/latest"
        server.shutdown()


def test_the_notice_is_read_with_a_token(metadata: str) -> None:
    assert [spot_notice.notice(metadata) for _ in range(3)] == [None, None, Metadata.going]


def test_ray_is_told_once_with_the_time_that_is_left(metadata: str, tmp_path: Path) -> None:
    ray = tmp_path / "ray"
    ray.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n[ $(wc -l < {tmp_path}/told) -gt 1 ]\n')
    ray.chmod(0o755)
    quick = "from cluster import spot_notice as s; s.POLL_SECONDS = 0.1; raise SystemExit(s.main())"
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    line = [sys.executable, "-c", quick, "--metadata", metadata]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    told = (tmp_path / "told").read_text().splitlines()
    assert len(told) == 2, "the first time Ray refused"
    words = told[1].split()
    assert words[:3] == ["drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    assert 60 < int(words[words.index("--deadline-remaining-seconds") + 1]) <= 120


def test_ray_knows_these_words() -> None:
    from ray.scripts.scripts import drain_node

    assert {"--reason", "--reason-message", "--deadline-remaining-seconds"} <= {
        option for parameter in drain_node.params for option in parameter.opts
    }


def test_a_service_that_does_not_answer_is_an_error() -> None:
    with pytest.raises(OSError):
        spot_notice.notice("http://127.0.0.1:9/latest")
