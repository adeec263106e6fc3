"""A Ray cluster of machines that have an address each, on one machine: every one is a network namespace on a
common bridge.

    python tests/clusters/machines.py two FOLDER [OPTION of beit pretrain …]
        Two machines train one model, through a folder that both see.
    python tests/clusters/machines.py elastic FOLDER
        A machine comes, a machine is lost: the group of workers grows and shrinks.
    python tests/clusters/machines.py nothing FOLDER
        Only what both need of this machine; says whether it can be had.

Needs `unshare` and `setpriv` (Linux) and no rights beyond. The program goes into namespaces of its own first,
so it touches no network but that, and all that it has started ends with it, whatever it dies of: it is the
first process there. A machine is ended by killing the processes of its own network. Prints what happens,
checks the samples at the end, and is slow: docs/log/clusters.md has transcripts.
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

from agent_ports import PORTS, announce, options

HEAD, BRIDGE = "10.77.0.1", "beit0"
# The program dies with its caller, and all others with the program.
WITH_CALLER = ["setpriv", "--pdeathsig", "KILL"]
ALONE = ["unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
TESTS = Path(__file__).resolve().parents[1]
sys.path.append(str(TESTS / "pipelines" / "training"))


class Machine:
    """A network namespace with an address, and the Ray node in it."""

    def __init__(self, cluster, number, *, cpus):
        self.cluster, self.name, self.address = cluster, f"machine {number}", f"10.77.0.{10 + number}"
        # It lives as long as the machine, whatever becomes of Ray's processes.
        self.holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        while not self.processes():
            if self.holder.poll() is not None:
                raise RuntimeError(
                    f"{self.name} has no network of its own: unshare ended with {self.holder.returncode}"
                )
            time.sleep(0.05)
        run(
            "ip",
            "link",
            "add",
            f"beit-{number}",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            str(self.holder.pid),
        )
        run("ip", "link", "set", f"beit-{number}", "master", BRIDGE, "up")
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")
        node = secrets.token_hex(28)
        cluster.announce(node)
        command = [
            "ray",
            "start",
            "--block",
            f"--address={HEAD}:6379",
            f"--node-ip-address={self.address}",
            f"--num-cpus={cpus}",
        ]
        command += ["--object-store-memory=200000000", "--disable-usage-stats", *options(AGENT_PORTS)]
        environment = {**os.environ, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": node, "GLOO_SOCKET_IFNAME": "eth0"}
        log = open(cluster.folder / f"machine-{number}.log", "w")  # noqa: SIM115 (as long as the machine)
        subprocess.Popen([*self.inside(), *command], env=environment, stdout=log, stderr=subprocess.STDOUT)

    def inside(self):
        return ["nsenter", "--target", str(self.holder.pid), "--net"]

    def run(self, *command):
        run(*self.inside(), *command)

    def processes(self):
        """Those of its namespace, which is another than ours."""
        try:
            own = os.readlink(f"/proc/{self.holder.pid}/ns/net")
        except OSError:
            return []
        return [] if own == os.readlink("/proc/self/ns/net") else in_namespace(own)

    def kill(self):
        """Remove the machine suddenly, together with its network."""
        found = self.processes()
        run("ip", "link", "delete", f"beit-{int(self.name.split()[1])}")
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        self.holder.wait()
        self.cluster.say(f"- {self.name}: {len(found)} processes killed")


AGENT_PORTS = dict(zip(PORTS, range(7101, 7100 + len(PORTS) + 1), strict=True))


class Cluster:
    """A head without cores in the namespace of this program, and machines."""

    def __init__(self, folder):
        self.folder, self.started, self.machines = folder, time.monotonic(), []
        token = folder / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token), RAY_worker_niceness="0")
        self.session = folder / "ray" / "session_latest"
        node = secrets.token_hex(28)
        command = [
            "ray",
            "start",
            "--head",
            "--block",
            "--port=6379",
            f"--node-ip-address={HEAD}",
            "--num-cpus=0",
        ]
        command += [
            f"--temp-dir={folder / 'ray'}",
            "--dashboard-host=127.0.0.1",
            "--disable-usage-stats",
            *options(AGENT_PORTS),
        ]
        command += ["--object-store-memory=200000000"]
        environment = {**os.environ, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": node}
        with open(folder / "head.log", "w") as log:
            start = lambda: subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)  # noqa: E731
            self.head, deadline = start(), time.monotonic() + 600
            # On busy cores `ray start` gives up after 30 s.
            while "This command will now block" not in (folder / "head.log").read_text():
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the head does not start; see {folder / 'head.log'}")
                if self.head.poll() is not None:
                    self.session.unlink(missing_ok=True)
                    self.head = start()
                if self.session.exists():
                    self.announce(node)
                time.sleep(0.5)
        self.say(f"the head is there, {HEAD}, without cores")

    def announce(self, node):
        announce(self.session, node, AGENT_PORTS)

    def say(self, text):
        print(f"{time.monotonic() - self.started:6.1f} s  {text}", flush=True)

    def add(self, *, cpus):
        """Start a machine and wait for its node: two that start at once would take the same names in the
        folder that they share.
        """
        self.machines.append(Machine(self, len(self.machines) + 1, cpus=cpus))
        self.wait_for(self.machines[-1])
        return self.machines[-1]

    def join(self):
        import ray

        ray.init(address=f"{HEAD}:6379", logging_level="ERROR", log_to_driver=False)

    def wait_for(self, machine, limit=600):
        import ray

        deadline = time.monotonic() + limit
        while not any(
            node["Alive"] and node["NodeManagerAddress"] == machine.address for node in ray.nodes()
        ):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{machine.name} does not join; see {self.folder}/{machine.name.replace(' ', '-')}.log"
                )
            time.sleep(1)
        self.say(f"+ {machine.name}, {machine.address}, has joined")

    def where_workers_are(self):
        """Addresses of the machines in which training workers run, one for each."""
        return [
            machine.address
            for machine in self.machines
            for pid in machine.processes()
            if name_of(pid).startswith("ray::RayTrainWorker")
        ]


def run(*command):
    subprocess.run(command, check=True)


def build_bridge():
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "address", "add", f"{HEAD}/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")


def in_namespace(name):
    found = []
    for pid in (int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
        try:
            if os.readlink(f"/proc/{pid}/ns/net") == name:
                found.append(pid)
        except OSError:
            continue
    return found


def name_of(pid):
    """The name of a process; "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


class Driver:
    """A job's driver, whose lines are shown as they come."""

    def __init__(self, cluster, *command):
        self.cluster, self.log, self.lines = cluster, cluster.folder / "driver.log", []
        environment = {**os.environ, "RAY_ADDRESS": f"{HEAD}:6379", "GLOO_SOCKET_IFNAME": BRIDGE}
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, command)], env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def look(self):
        """Show new lines; returns False when the job has ended."""
        running = self.process.poll() is None
        lines = self.log.read_text().splitlines()
        for line in lines[len(self.lines) :]:
            self.cluster.say(f"  {line}")
        self.lines = lines
        return running

    def wait_until(self, reached, limit=1200):
        deadline = time.monotonic() + limit
        while not reached():
            if not self.look():
                raise RuntimeError("the driver has ended")
            if time.monotonic() > deadline:
                raise TimeoutError("the driver does not come there")
            time.sleep(1)


def two(cluster, *given):
    """A pretraining with a worker on each of two machines."""
    from pipelines.runs import checkpoints
    from pipelines.stream.ledger import Ledger

    cluster.add(cpus=2), cluster.add(cpus=2)
    # More than half of a machine each: one worker a machine.
    options = ["--data.scenes", 1000, "--epochs", 2, "--resources.workers", 2, "--resources.worker-cpus", 1.2]
    output = [
        "--output.root",
        cluster.folder / "runs",
        "--output.name",
        "run",
        "--output.no-mlflow",
        "--output.log-seconds",
        3,
    ]
    driver, workers = Driver(cluster, "-m", "pipelines.pretrain", "quickstart", *options, *output, *given), []
    while driver.look():
        now = cluster.where_workers_are()
        if len(now) > len(workers):  # At the end one goes before the other.
            cluster.say(f"workers on {', '.join(now)}")
            workers = now
        time.sleep(2)
    cluster.say(f"the driver has ended with {driver.process.returncode}")
    assert driver.process.returncode == 0
    assert workers == sorted(machine.address for machine in cluster.machines)
    checkpoint = Path(checkpoints.latest_checkpoint(str(cluster.folder / "runs" / "run")))
    ledger, step = (
        Ledger.from_bytes((checkpoint / "ledger.npz").read_bytes()),
        json.loads((checkpoint / "progress.json").read_text())["step"],
    )
    # A ledger refuses a sample that is entered twice, so a number that fits the steps says that each was
    # there once.
    print(
        f"the ledger: {ledger.settled:,} samples settled = {step} steps x 64; {ledger.complete} epochs "
        "complete"
    )
    assert ledger.settled == step * 64


def elastic(cluster):
    """A group of one worker that becomes two, and one again; its weights count the samples."""
    import counting_run

    shards, tokenizer = cluster.folder / "shards", cluster.folder / "tokenizer"
    counting_run.write_shards(shards), counting_run.write_tokenizer(tokenizer)
    first = cluster.add(cpus=2)
    holds = [
        "--hold",
        "5:1",
        "13:2",
    ]  # With one worker it goes no further than step 5, with two no further than 13.
    program = TESTS / "pipelines" / "training" / "counting_run.py"
    driver = Driver(cluster, program, shards, tokenizer, cluster.folder, "--workers", "1..2", *holds)
    driver.wait_until((cluster.folder / "held-5-1").exists)
    cluster.say(f"step 5 with a worker on {cluster.where_workers_are()}: now a machine comes")
    second = cluster.add(cpus=2)
    # Checkpoints are uploaded while steps go on, and count when all of the group have said so.
    known = cluster.folder / "run" / "attempt-1" / "checkpoint_manager_snapshot.json"
    driver.wait_until(
        lambda: (cluster.folder / "held-13-2").exists() and "step-00000012" in known.read_text()
    )
    workers = cluster.where_workers_are()
    cluster.say(f"step 13 with workers on {workers}: now a machine is lost")
    assert workers == [first.address, second.address]
    second.kill()
    while driver.look():
        time.sleep(1)
    cluster.say(f"the driver has ended with {driver.process.returncode}")
    assert driver.process.returncode == 0
    counting_run.assert_exactly_once(shards, tokenizer, cluster.folder, missing=3 * 186 % counting_run.BATCH)
    print(
        "every sample of every epoch was trained on once, and is what its key says; 6 are left, less than a "
        "step"
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["two", "elastic", "nothing"])
    parser.add_argument("folder", type=Path)
    args, options = parser.parse_known_args()
    if os.environ.get("BEIT_OWN_NETWORK") is None:
        os.environ["BEIT_OWN_NETWORK"] = "1"
        os.execvp(WITH_CALLER[0], [*WITH_CALLER, *ALONE, sys.executable, *sys.argv])
    build_bridge()
    if args.what == "nothing":
        return
    folder = args.folder.resolve()
    folder.mkdir(parents=True)
    cluster = Cluster(folder)
    cluster.join()
    {"two": two, "elastic": elastic}[args.what](cluster, *options)


if __name__ == "__main__":
    main()
