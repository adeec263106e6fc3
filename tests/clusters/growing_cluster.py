"""A pretraining on a cluster that grows from nothing and goes back to nothing, on one machine: its nodes are
processes.

    python tests/clusters/growing_cluster.py FOLDER [--kill] [OPTION of beit pretrain …]

A head without cores for work, Ray's own autoscaler, and three types of nodes as in clusters/aws.yaml: for
views, for tokens (tag), for training (tag, one worker a node). `--kill` kills every process of one training
node when some steps are done. Prints when nodes come and go, checks the ledger at the end, and ends its own
processes only. Slow, and made to be watched: docs/log/clusters.md has a transcript.
"""

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

from agent_ports import announce, free_port, options, own_ports

from pipelines.runs import checkpoints
from pipelines.runs.metrics import read_metrics
from pipelines.stream.ledger import Ledger

IDLE_MINUTES = 0.15
# The autoscaler looks every second, and on busy cores a node takes its time to end.
GONE_WITHIN_SECONDS = 120
# As Ray's provider for tests calls them.
HEAD, HEAD_TYPE = "f" * 51 + "00000", "ray.head.default"
TYPES = {
    HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    "views": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    "tokens": {"resources": {"CPU": 1, "tokens": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1},
    "train": {"resources": {"CPU": 1, "train": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
}
OPTIONS = (
    "--data.scenes",
    "2000",
    "--epochs",
    "2",
    "--resources.workers",
    "2",
    "--resources.worker-cpus",
    "1",
)
OUTPUT = (
    "--output.name",
    "run",
    "--output.checkpoint-steps",
    "10",
    "--output.log-seconds",
    "3",
    "--output.no-mlflow",
)


class Cluster:
    """The head with its autoscaler, which starts the nodes as child processes."""

    def __init__(self, folder):
        self.folder, self.started = folder, time.monotonic()
        token = folder / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_worker_niceness": "0",
        }
        # The head imports process_nodes from here.
        self.environment["PYTHONPATH"] = os.pathsep.join(
            [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        os.environ.update(self.environment)
        self.announce = lambda: announce(self.session, HEAD, self.ports)
        self.port, self.ports = free_port(), own_ports()
        self.session = folder / "ray" / "session_latest"
        config = {
            "cluster_name": "growing",
            "max_workers": 5,
            "idle_timeout_minutes": IDLE_MINUTES,
            "upscaling_speed": 10.0,
            "provider": {
                "type": "external",
                "module": "process_nodes.Nodes",
                "gcs_address": f"127.0.0.1:{self.port}",
                "launch_multiple": True,
                "head_node_id": HEAD,
            },
            "available_node_types": {
                name: {**kind, "resources": {**kind["resources"], **STORE}} for name, kind in TYPES.items()
            },
            "head_node_type": HEAD_TYPE,
            **{
                name: []
                for name in (
                    "setup_commands",
                    "initialization_commands",
                    "head_setup_commands",
                    "worker_setup_commands",
                )
            },
            "head_start_ray_commands": [],
            "worker_start_ray_commands": [],
            "file_mounts": {},
            "cluster_synced_files": [],
            "auth": {},
            "docker": {},
        }
        (folder / "cluster.json").write_text(json.dumps(config))
        head = {
            "GROWING_CLUSTER_SESSION": str(self.session),
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": HEAD,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
            "RAY_NODE_TYPE_NAME": HEAD_TYPE,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        }
        command = [
            "ray",
            "start",
            "--head",
            "--block",
            f"--port={self.port}",
            "--num-cpus=0",
            "--node-ip-address=127.0.0.1",
        ]
        command += [
            f"--autoscaling-config={folder / 'cluster.json'}",
            f"--temp-dir={folder / 'ray'}",
            "--disable-usage-stats",
        ]
        command += [
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={free_port()}",
            f"--ray-client-server-port={free_port()}",
            *options(self.ports),
            f"--object-store-memory={STORE['object_store_memory']}",
        ]
        self.log = open(folder / "head.log", "w")  # noqa: SIM115 (closed with the cluster)
        self.start = lambda: subprocess.Popen(
            command,
            env={**self.environment, **head},
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.process = self.start()
        self.address = f"127.0.0.1:{self.port}"
        self.seen = {}

    def say(self, text):
        print(f"{time.monotonic() - self.started:6.1f} s  {text}", flush=True)

    def join(self):
        import ray

        deadline = time.monotonic() + 300
        # `ray start` says so when all of it is there; on busy cores it gives up after 30 s.
        while "This command will now block" not in (self.folder / "head.log").read_text():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the head does not start; see {self.folder / 'head.log'}")
            if self.process.poll() is not None:
                self.kill_what_is_left()
                self.session.unlink(missing_ok=True)
                self.process = self.start()
            if self.session.exists():
                self.announce()
            time.sleep(0.5)
        ray.init(address=self.address, logging_level="ERROR", log_to_driver=False)

    def nodes(self):
        """{name of the node: type} of the nodes that live, the head aside; tells what has come or gone."""
        import ray

        alive = {}
        for node in ray.nodes():
            resources = node["Resources"]
            if node["Alive"] and node["NodeID"] != HEAD:
                kind = next((tag for tag in ("train", "tokens") if tag in resources), "views")
                alive[node["NodeID"]] = kind
        for name in alive.keys() - self.seen.keys():
            self.say(f"+ {alive[name]} node …{name[-5:]}")
        for name in self.seen.keys() - alive.keys():
            self.say(f"- {self.seen[name]} node …{name[-5:]}")
        self.seen = alive
        return alive

    def kill_node(self, name):
        """Kill all processes of a node, as if its machine were gone."""
        mark = f"RAY_CLOUD_INSTANCE_ID={name}".encode()
        found = [pid for pid in processes() if mark in environment_of(pid).split(b"\0")]
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        self.say(f"killed: {len(found)} processes of the node …{name[-5:]}")

    def kill_what_is_left(self):
        """Kill the processes that know this cluster's token, but for this one; return how many."""
        mark = f"RAY_AUTH_TOKEN_PATH={self.folder / 'token'}".encode()
        left = [pid for pid in processes() if pid != os.getpid() and mark in environment_of(pid).split(b"\0")]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return len(left)

    def end(self):
        import ray

        ray.shutdown()
        self.process.terminate()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()
        left = self.kill_what_is_left()
        self.say(
            f"the head has ended; {left} processes were left and are killed"
            if left
            else "the head has ended; no process is left"
        )


STORE = {"object_store_memory": 200_000_000}


def processes():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def environment_of(pid):
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kill", action="store_true")
    args, options = parser.parse_known_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True)
    cluster = Cluster(folder)
    try:
        cluster.join()
        cluster.say(f"the head is there, with no other node: {cluster.nodes() == {}}")
        command = [
            sys.executable,
            "-m",
            "pipelines.pretrain",
            "quickstart",
            *OPTIONS,
            *OUTPUT,
            "--output.root",
            str(folder / "runs"),
            *options,
        ]
        cluster.say(" ".join(command[2:]))
        types = str(folder / "cluster.json")
        with open(folder / "driver.log", "w") as log:
            driver = subprocess.Popen(
                command,
                env={**cluster.environment, "RAY_ADDRESS": cluster.address, "BEIT_NODE_TYPES": types},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        shown, most, killed = 0, {}, False
        while driver.poll() is None:
            time.sleep(0.5)
            lines = (folder / "driver.log").read_text().splitlines()
            for line in lines[shown:]:
                cluster.say(f"  {line}")
            shown = len(lines)
            alive = list(cluster.nodes().values())
            most = {kind: max(most.get(kind, 0), alive.count(kind)) for kind in ("views", "tokens", "train")}
            if (
                args.kill
                and not killed
                and any(f"step {n}/" in line for n in range(12, 60) for line in lines)
            ):
                cluster.kill_node(next(name for name, kind in cluster.seen.items() if kind == "train"))
                killed = True
        for line in (folder / "driver.log").read_text().splitlines()[shown:]:
            cluster.say(f"  {line}")
        cluster.say(f"the driver has ended with {driver.returncode}; most nodes at once: {most}")
        waiting = time.monotonic()
        while left := cluster.nodes():
            assert time.monotonic() - waiting < GONE_WITHIN_SECONDS, f"{left} are still there"
            time.sleep(0.5)
        cluster.say(
            f"no node is left {time.monotonic() - waiting:.0f} s later; the idle limit is "
            f"{60 * IDLE_MINUTES:.0f} s"
        )
    finally:
        cluster.end()
    run = str(folder / "runs" / "run")
    checkpoint = Path(checkpoints.latest_checkpoint(run))
    ledger = Ledger.from_bytes((checkpoint / "ledger.npz").read_bytes())
    steps = read_metrics(run)[-1]["step"]
    # A ledger refuses a sample that is entered twice, so a number that fits the steps says that each was
    # there once.
    print(
        f"the ledger: {ledger.settled:,} samples settled = {steps} steps x 64; {ledger.complete} epochs "
        "complete"
    )
    assert driver.returncode == 0
    assert killed == args.kill
    assert ledger.settled == steps * 64
    assert min(most.values()) >= 1


if __name__ == "__main__":
    main()
