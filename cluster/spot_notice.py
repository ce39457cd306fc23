"""Tell Ray when AWS is about to take this spot machine away: python -m cluster.spot_notice

Run it on every spot machine of a cluster, beside `ray start`. AWS gives two minutes' notice. Ray then drains the
machine, and the driver of a run with workers there requests a checkpoint. On other clouds, call `ray drain-node` in
the same way when their notice arrives.
"""

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
"""AWS's instance metadata service (IMDSv2), which every AWS machine reaches."""

POLL_SECONDS = 5.0
"""As AWS recommends."""


def notice(metadata: str = METADATA) -> datetime.datetime | None:
    """When AWS will take this machine (UTC), None if no notice was given. OSError if the service does not answer."""
    lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "300"}
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
    with urllib.request.urlopen(request, timeout=2) as answer:
        return answer.read().decode()


def drain(seconds: int) -> int:
    """Let Ray drain this machine; returns the exit status of `ray drain-node`."""
    why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot interruption notice"]
    command = ["ray", "drain-node", *why, "--deadline-remaining-seconds", str(seconds)]
    return subprocess.run(command, check=False).returncode


def main() -> int:
    """Wait for the notice and pass it on to Ray."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metadata", default=os.environ.get("EC2_METADATA", METADATA), help="address of the service")
    metadata = parser.parse_args().metadata
    while True:
        try:
            going = notice(metadata)
        except OSError as error:  # also HTTPError and URLError
            print(f"{metadata} does not answer ({error}): trying again", file=sys.stderr, flush=True)
            going = None
        if going is not None:
            left = (going - datetime.datetime.now(datetime.UTC)).total_seconds()
            print(f"this machine will be taken away at {going}: draining it", file=sys.stderr, flush=True)
            if drain(max(int(left), 0)) == 0:
                return 0
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
