"""The commands of README and docs: each is one, with options that it has, and each pretraining would find its
tokenizer.

Whether other commands than trainings are given the right number of words is not looked at.
"""

import json
import re
import shlex
from pathlib import Path

import pytest

from beit.config import ModelConfig
from beit.pretraining.model import Beit
from beit.tokenizer.registry import tokenizer_names
from beit.vit.checkpoints import save_model
from pipelines.cli import main

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "clusters" / "README.md"]
TRAINING = ("pretrain", "finetune", "segment", "probe", "sweep", "ablate", "tokenizer train")
NUMBERS = {"LR": "1e-3", "STEPS": "9", "PART": "0.5"}


def commands():
    """Each command of the pages once: its words behind `beit`, or behind what a cluster or Slurm
    runs it by.
    """
    for page in PAGES:
        for block in re.findall(r"^```(?:sh|bash)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if found := re.search(
                    r"(?:^|&& )beit (.*)|-m (?:pipelines|tune)\.(.*)|beit\.sbatch (.*)", line
                ):
                    yield tuple(shlex.split(next(filter(None, found.groups())), comments=True))


COMMANDS = [" ".join(words) for words in dict.fromkeys(commands())]
assert len(COMMANDS) > 80, "commands are not found any more"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """What stands for a pretrained run."""
    folder = tmp_path_factory.mktemp("run") / "model"
    sizes = ModelConfig(image_size=224, patch_size=16, dim=24, depth=4, heads=2)
    save_model(Beit(sizes, 16, seed=0), folder, extra={"view": {"mean": [0.5] * 3, "std": [0.5] * 3}})
    return str(folder)


@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if command.startswith(TRAINING) and "--resume" not in command]
)
def test_a_training_of_the_pages_can_be_configured_as_it_is_written(command, model, capsys, monkeypatch):
    for explained in ("pipelines.pretrain", "tune.sweep", "tune.ablation.ablate"):  # They look at the data.
        monkeypatch.setattr(f"{explained}.explain", lambda config, preset: ())
    words = [NUMBERS.get(word, word) for word in re.sub(r"(--\S+ )?…", "", command).split()]
    job = words[: 1 + command.startswith("tokenizer")]
    rest = words[len(job) :]
    if job[0] in ("finetune", "segment") and rest and rest[0].startswith(("run", "RUN")):
        rest[0] = model
    main([*job, *rest, "--dry-run"])
    config = json.loads(capsys.readouterr().out)
    if "target" in config and config["target"]["kind"] == "tokens":
        assert config["tokenizer"]["path"] or config["tokenizer"]["name"] in tokenizer_names()


@pytest.mark.parametrize(
    "job",
    sorted(
        {" ".join(command.split()[: 1 + command.startswith(("data", "tokenizer"))]) for command in COMMANDS}
    ),
)
def test_every_option_of_the_pages_is_in_the_help_of_its_command(job, capsys):
    code = 0
    try:
        main([*job.split(), "--help"])
    except SystemExit as end:
        code = end.code
    assert not code, "no such command"
    shown = set(re.findall(r"--[\w.-]+", capsys.readouterr().out))
    written = {
        word
        for command in COMMANDS
        if command.startswith(job)
        for word in command.split()
        if word.startswith("--")
    }
    assert written <= shown | {"--resume"}
