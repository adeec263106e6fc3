"""The shell scripts, by shellcheck, and the documented jobs, by the command line itself."""

import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import yaml

from pipelines import cli

CLUSTERS = Path(__file__).resolve().parents[2] / "clusters"
SCRIPTS = [CLUSTERS / "local.sh", CLUSTERS / "slurm" / "beit.sbatch"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which(
        "shellcheck"
    )
    found = subprocess.run([shellcheck, str(script)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_without_a_command_a_script_says_how_it_is_used(script):
    asked = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False)
    assert asked.returncode == 2
    assert script.name in asked.stderr


STAND_INS = {
    "scontrol": "printf '%s\\n' n1 n2",
    # Options, then the command, which learns on which node it is.
    "srun": (
        'while [[ $1 == -* ]]; do [[ $1 != --nodelist=* ]] || export NODE=${1#*=}; shift; done; exec "$@"'
    ),
    "hostname": "echo 10.0.0.1 172.17.0.1",
    "ray": """
        case $1 in
        start) if [[ $NODE == "${BROKEN:-}" ]]; then echo "$NODE: no GCS"; exit 1; fi; exec sleep 300 ;;
        status) [[ ${BROKEN:-} != n1 && -z ${SLOW:-} ]] || { touch waits; false; } ;;
        esac""",
    "python": """
        case "$*" in
        *secrets*) echo -n secret ;;
        *ray.init*) [[ -z ${BROKEN:-} ]] && echo 2 || echo 1 ;;
        *) echo "$RAY_ADDRESS: $*"; exit 3 ;;
        esac""",
}
"""Of Slurm, of Ray and of the job: two nodes, and a job that ends with 3."""


@pytest.fixture
def slurm(tmp_path):
    """Starts the script in a folder of its own."""
    (tmp_path / "bin").mkdir()
    for name, script in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n[1-2]",
    }
    (tmp_path / "here").mkdir()

    def start(**more):
        command = ["bash", str(CLUSTERS / "slurm" / "beit.sbatch"), "pretrain", "base"]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, stdout=pipe, stderr=pipe, text=True, cwd=tmp_path / "here", env=environment | more
        )

    return start


@pytest.mark.parametrize("broken", [None, "n1", "n2"])
def test_slurm_ends_with_the_job_or_with_a_node_that_does_not_start_and_leaves_nothing(
    broken, slurm, tmp_path
):
    script = slurm(BROKEN=broken or "")
    told, complained = script.communicate(timeout=120)
    if broken:
        assert script.returncode == 1
        assert f"{broken}: no GCS" in told
        assert f"Ray on {broken} has ended" in complained
    else:
        assert script.returncode == 3, complained
        assert "10.0.0.1:20007: -m pipelines.cli pretrain base" in told
    assert not list((tmp_path / "here").glob("*token*"))


def test_slurm_ends_at_a_signal_before_the_job_has_begun(slurm, tmp_path):
    script = slurm(SLOW="1")
    deadline = time.monotonic() + 60
    while not (tmp_path / "here" / "waits").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    script.terminate()
    told, _ = script.communicate(timeout=120)
    assert script.returncode == 143
    assert "pretrain base" not in told, "no job was started"


def job_commands():
    """The commands behind `python -m pipelines.pretrain` that the files of clusters/ start."""
    texts = [
        yaml.safe_load((CLUSTERS / "kuberay" / "rayjob.yaml").read_text())["spec"]["entrypoint"],
        (CLUSTERS / "README.md").read_text().replace("\\\n", " "),
    ]
    return [
        shlex.split(options)
        for text in texts
        for options in re.findall(r"python -m pipelines\.pretrain ([^\n`…]+)$", text, re.MULTILINE)
    ]


def test_the_options_of_every_documented_job_are_understood(monkeypatch):
    understood = []
    monkeypatch.setattr(
        "pipelines.training.frame.run",
        lambda task, config, **how: understood.append((how["preset"], config.output.root)),
    )
    commands = job_commands()
    for options in commands:
        cli.main(["pretrain", *options])
    assert len(understood) == len(commands) == 6
    assert all(root.startswith(("s3://", "gs://", "/mnt/beit/", "$PWD/")) for _, root in understood), (
        "a job's own folder goes away"
    )


def test_what_a_job_ships_is_the_code_and_small(tmp_path):
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "package.zip"
    create_package(
        str(CLUSTERS.parent),
        package,
        include_gitignore=True,
        include_parent_dir=False,
        excludes=[".git"],
        logger=logging.getLogger(),
    )
    with zipfile.ZipFile(package) as archive:
        names = archive.namelist()
    assert {
        "pipelines/pretrain.py",
        "beit/vit/backbone.py",
        "beit/tokenizer/trained/scenes64/tokenizer.safetensors",
    } <= set(names)
    assert not [
        name
        for name in names
        if name.startswith(("tests/", "docs/", "runs/", ".git/", ".venv/")) or "__pycache__" in name
    ]
    assert package.stat().st_size < 10_000_000
