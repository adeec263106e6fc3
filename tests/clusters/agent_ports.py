"""Choose the ports of a Ray node's agents before it starts: Ray waits 15 s until the agents announce them,
which is too short on busy cores.
"""

import socket
from pathlib import Path

PORTS = {
    # Option of `ray start` -> file in which a node's agents say the same.
    "dashboard-agent-listen-port": "dashboard_agent_listen_port",
    "dashboard-agent-grpc-port": "metrics_agent_port",
    "metrics-export-port": "metrics_export_port",
    "runtime-env-agent-port": "runtime_env_agent_port",
}


def own_ports():
    """A node's own ports, by option: several nodes on one machine cannot all use the default ones."""
    return {option: free_port() for option in PORTS}


def options(ports):
    return [f"--{option}={port}" for option, port in ports.items()]


def announce(session, node, ports):
    """Write the ports down before the node's agents do."""
    for option, port in ports.items():
        Path(session, f"{PORTS[option]}_{node}").write_text(str(port))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
