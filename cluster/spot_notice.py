"""Tell Ray that this machine will be taken away, when AWS says so: python -m cluster.spot_notice

It runs on every spot machine of a cluster, beside `ray start`. AWS gives a spot machine two minutes' notice; Ray then
drains it, and the driver of a run with workers there asks for a checkpoint. Other clouds have other addresses for a
notice: let something there run `ray drain-node` in the same way.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

METADATA = "http://169.254.169.254/latest"
"""AWS's instance metadata service (IMDSv2), on every machine of its own."""

TOKEN_SECONDS = 300

SECONDS_BETWEEN_LOOKS = 5.0
"""As AWS advises."""

REQUEST_SECONDS = 2.0


def notice(metadata: str = METADATA) -> datetime.datetime | None:
    """When AWS will take this machine (UTC), or None where it has not said so. OSError where nobody answers."""
    lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
    token = _ask(urllib.request.Request(f"{metadata}/api/token", method="PUT", headers=lifetime))
    mine = {"X-aws-ec2-metadata-token": token}
    try:
        answer = _ask(urllib.request.Request(f"{metadata}/meta-data/spot/instance-action", headers=mine))
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise
    return datetime.datetime.fromisoformat(json.loads(answer)["time"])


def _ask(request: urllib.request.Request) -> str:
    with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as answer:
        return answer.read().decode()


def drain(seconds: int) -> int:
    """Have Ray drain the machine on which this runs; the exit status of `ray drain-node`."""
    why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot interruption notice"]
    command = ["ray", "drain-node", *why, "--deadline-remaining-seconds", str(seconds)]
    return subprocess.run(command, check=False).returncode


def main() -> int:
    """Wait for the notice, pass it on, end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metadata", default=os.environ.get("EC2_METADATA", METADATA), help="address of the service")
    metadata = parser.parse_args().metadata
    while True:
        try:
            going = notice(metadata)
        except OSError as error:  # HTTPError and URLError are such, too
            print(f"{metadata} does not answer ({error}): asking again", file=sys.stderr, flush=True)
            going = None
        if going is not None:
            left = (going - datetime.datetime.now(datetime.UTC)).total_seconds()
            print(f"this machine goes at {going}: Ray is told", file=sys.stderr, flush=True)
            if drain(max(int(left), 0)) == 0:
                return 0
        time.sleep(SECONDS_BETWEEN_LOOKS)


if __name__ == "__main__":
    sys.exit(main())
