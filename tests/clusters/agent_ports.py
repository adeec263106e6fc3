"""Ports of a Ray node's agents, said beforehand: Ray waits 15 s for them to be announced, which is too short
on busy cores.
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
    """Ports of a node's own, by option: nodes on one machine would meet on the usual ones."""
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
