"""The commands and Python snippets of the pages: every command is understood as it is written, with options
that it has, every pretraining would find its tokenizer, and every snippet runs.
"""

import importlib
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from beit.config import ModelConfig
from beit.pretraining.model import Beit
from beit.tokenizer.registry import tokenizer_names
from beit.vit.checkpoints import save_model
from pipelines import cli
from pipelines.cli import main
from tune.space import load_space

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "clusters" / "README.md"]
TRAINING = ("pretrain", "finetune", "segment", "probe", "sweep", "ablate", "tokenizer train")
NUMBERS = {"LR": "1e-3", "STEPS": "9", "PART": "0.5"}


def blocks(*languages: str) -> list[str]:
    """The blocks of code of all pages."""
    pattern = rf"^```(?:{'|'.join(languages)})\n(.*?)^```"
    return [
        block for page in PAGES for block in re.findall(pattern, page.read_text(), re.MULTILINE | re.DOTALL)
    ]


def commands():
    """The words behind `beit`, or behind what a cluster or Slurm runs it by, of each command of the pages."""
    call = re.compile(
        r"(?:^|&& )beit (.*)|-m pipelines\.(?:cli )?(.*)|-m tune\.(.*)|beit\.sbatch (.*)", re.MULTILINE
    )
    for block in blocks("sh", "bash"):
        for found in call.findall(block.replace("\\\n", " ")):
            yield tuple(shlex.split(next(filter(None, found)), comments=True))


COMMANDS = [" ".join(words) for words in dict.fromkeys(commands()) if words[-1] != "--help"]
assert len(COMMANDS) > 80, "commands are not found any more"


def job_of(command: str) -> str:
    """The name in the table of commands that a command begins with."""
    return max((name for name in cli.COMMANDS if f"{command} ".startswith(f"{name} ")), key=len)


def words_of(command: str) -> list[str]:
    """The words, with numbers in place of their names and without what three dots stand for."""
    return [NUMBERS.get(word, word) for word in re.sub(r"(--\S+ )?…", "", command).split()]


def written(folder: Path, job: str, config: dict) -> str:
    """A run folder with nothing but its configuration."""
    folder.mkdir(parents=True)
    saved = {"job": job, "preset": "quickstart", "inputs": {}, "config": config}
    (folder / "config.json").write_text(json.dumps(saved))
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A replacement for a pretrained run."""
    folder = tmp_path_factory.mktemp("run") / "model"
    sizes = ModelConfig(image_size=224, patch_size=16, dim=24, depth=4, heads=2)
    save_model(Beit(sizes, 16, seed=0), folder, extra={"view": {"mean": [0.5] * 3, "std": [0.5] * 3}})
    return str(folder)


@pytest.fixture
def no_explaining(monkeypatch):
    """Replace what dry runs say in addition to the configuration, which would read the data."""
    for explained in ("pipelines.pretrain", "tune.sweep", "tune.ablation.ablate"):
        monkeypatch.setattr(f"{explained}.explain", lambda config, preset: ())


@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if command.startswith(TRAINING) and "--resume" not in command]
)
@pytest.mark.usefixtures("no_explaining")
def test_a_training_of_the_pages_can_be_configured_as_it_is_written(command, model, capsys):
    job = job_of(command).split()
    rest = words_of(command)[len(job) :]
    if rest and rest[0].endswith(".json"):
        rest.pop(0)  # The configuration of a run stands in place of a preset.
    elif rest and rest[0].startswith(("RUN", "runs/", "s3://")):
        rest[0] = model
    main([*job, *rest, "--dry-run"])
    config = json.loads(capsys.readouterr().out)
    if "target" in config and config["target"]["kind"] == "tokens":
        assert config["tokenizer"]["path"] or config["tokenizer"]["name"] in tokenizer_names()


@pytest.mark.parametrize("command", [command for command in COMMANDS if "--resume" in command])
@pytest.mark.usefixtures("no_explaining")
def test_a_run_can_be_resumed_as_it_is_written(command, model, tmp_path, capsys):
    job = job_of(command).split()
    main([*job, *([model] if job == ["probe"] else []), "--dry-run"])
    run = written(tmp_path / "run", " ".join(job), json.loads(capsys.readouterr().out))
    words = words_of(command)[len(job) :]
    words[words.index("--resume") + 1] = run
    main([*job, *words, "--dry-run"])
    assert json.loads(capsys.readouterr().out)


class Understood(BaseException):
    """The words of a command give a valid configuration."""


@pytest.mark.parametrize("command", [command for command in COMMANDS if not command.startswith(TRAINING)])
def test_every_other_command_is_understood_as_it_is_written(command, monkeypatch):
    job = job_of(command)
    module = importlib.import_module(cli.COMMANDS[job].function.split(":")[0])
    words = words_of(command)
    if job == "report":
        assert len(words) == 2
        return

    def understood(*arguments, parse=module.parse, **options):
        raise Understood(parse(*arguments, **options))

    monkeypatch.setattr(module, "parse", understood)
    with pytest.raises(Understood):
        cli.beit(words, debug=False)


@pytest.mark.parametrize("snippet", blocks("python"))
def test_every_snippet_runs(snippet, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.pretrain.pretrain", lambda config: config)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "OUT" / "parts").mkdir(parents=True)
    features = pa.table({"path": ["a", "b"], "layer_9_mean": [np.zeros(4, np.float16)] * 2})
    pq.write_table(features, tmp_path / "OUT" / "parts" / "part-00000-of-00001.parquet")
    exec(snippet, {"images": torch.zeros(2, 3, 64, 64, dtype=torch.uint8)})


def test_spaces_of_the_pages_can_be_read(tmp_path):
    spaces = [block for block in blocks("json") if "optim.peak_lr" in block]
    python = [block for block in blocks("python") if "SPACE" in block]
    assert spaces
    assert python
    for number, (ending, space) in enumerate(
        [*(("json", block) for block in spaces), *(("py", block) for block in python)]
    ):
        path = tmp_path / f"space{number}.{ending}"
        path.write_text(space)
        assert "optim.peak_lr" in load_space(str(path))
