import hashlib
import json

import pytest

from beit.errors import UserError
from pipelines.runs import checkpoints

FILES = ("model.safetensors", "optimizer.safetensors", "ledger.npz", "targets.json")


def write_checkpoint(run, attempt: int, step: int, suffix: str = "") -> None:
    folder = run / f"attempt-{attempt}" / f"step-{step:08d}{suffix}"
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text(f"{name} of step {step}" * 10)
    checkpoints.seal(folder, step=step, seconds=1.5 * step)


def newest(run) -> str | None:
    found = checkpoints.latest_checkpoint(str(run))
    return None if found is None else found.removeprefix(f"{run}/")


def test_the_newest_complete_checkpoint_of_all_attempts_is_found(tmp_path):
    assert newest(tmp_path) is None
    write_checkpoint(tmp_path, 1, 900)
    write_checkpoint(tmp_path, 2, 1100)
    write_checkpoint(tmp_path, 2, 1200)
    (tmp_path / "attempt-2" / "step-00001200" / "model.safetensors").unlink()  # killed while it was uploaded
    (tmp_path / "attempt-2" / "step-00001300").mkdir()
    assert newest(tmp_path) == "attempt-2/step-00001100"
    write_checkpoint(tmp_path, 2, 1150, "-restart1")
    assert newest(tmp_path) == "attempt-2/step-00001150-restart1"
    checkpoints.forget_checkpoints(str(tmp_path), keep=2)
    assert not (tmp_path / "attempt-1" / "step-00000900").exists()
    assert (tmp_path / "attempt-2" / "step-00001100").exists()


def test_a_checkpoint_says_its_step_and_the_digest_of_every_file(tmp_path):
    write_checkpoint(tmp_path, 1, 7)
    folder = tmp_path / "attempt-1" / "step-00000007"
    progress = checkpoints.read_progress(str(folder))
    assert (progress.step, progress.seconds) == (7, 10.5)
    for name in FILES:
        assert progress.digests[name] == hashlib.sha256((folder / name).read_bytes()).hexdigest()


def flip(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def another_step(path) -> None:
    path.write_text(path.read_text().replace('"step": 20', '"step": 19'))


@pytest.mark.parametrize("name", [*FILES, "progress.json"])
@pytest.mark.parametrize(
    "damage", [flip, cut, lambda path: path.write_bytes(b""), lambda path: path.write_text("null")]
)
def test_damage_of_any_file_is_said_and_the_checkpoint_before_is_taken(tmp_path, name, damage):
    write_checkpoint(tmp_path, 1, 10)
    write_checkpoint(tmp_path, 2, 20)
    damage(tmp_path / "attempt-2" / "step-00000020" / name)
    lines = []
    checkpoints.set_damaged_aside(str(tmp_path), lines.append)
    assert newest(tmp_path) == "attempt-1/step-00000010"
    (line,) = lines
    assert line.startswith(f"warning: {tmp_path}/attempt-2/step-00000020: {name} ")
    checkpoints.set_damaged_aside(str(tmp_path), lines.append)
    assert len(lines) == 1, "it is said once"


def test_a_progress_file_with_another_step_is_not_believed(tmp_path):
    write_checkpoint(tmp_path, 1, 10)
    write_checkpoint(tmp_path, 1, 20)
    another_step(tmp_path / "attempt-1" / "step-00000020" / "progress.json")
    assert newest(tmp_path) == "attempt-1/step-00000010"


def test_a_missing_file_is_damage_and_an_upload_that_was_broken_off_is_none(tmp_path):
    write_checkpoint(tmp_path, 1, 10)
    write_checkpoint(tmp_path, 1, 20)
    write_checkpoint(tmp_path, 1, 30)
    (tmp_path / "attempt-1" / "step-00000030" / "progress.json").unlink()
    (tmp_path / "attempt-1" / "step-00000020" / "ledger.npz").unlink()
    lines = []
    checkpoints.set_damaged_aside(str(tmp_path), lines.append)
    assert [line for line in lines if "step-00000020: ledger.npz is missing" in line] == lines
    assert newest(tmp_path) == "attempt-1/step-00000010"


def test_a_run_without_an_undamaged_checkpoint_is_refused(tmp_path):
    for step in (10, 20):
        write_checkpoint(tmp_path, 1, step)
        flip(tmp_path / "attempt-1" / f"step-{step:08d}" / "ledger.npz")
    with pytest.raises(UserError, match=r"no checkpoint .*/step-00000020: ledger.npz is not what was"):
        checkpoints.set_damaged_aside(str(tmp_path), print)
    with pytest.raises(UserError, match="no checkpoint of"):
        checkpoints.set_damaged_aside(str(tmp_path), print)


def test_checkpoints_of_older_versions_have_sizes_alone(tmp_path):
    write_checkpoint(tmp_path, 1, 10)
    folder = tmp_path / "attempt-1" / "step-00000010"
    files = {name: (folder / name).stat().st_size for name in FILES}
    (folder / "progress.json").write_text(json.dumps({"step": 10, "seconds": 1.0, "files": files}))
    checkpoints.set_damaged_aside(str(tmp_path), print)
    assert newest(tmp_path) == "attempt-1/step-00000010"


def test_a_run_goes_back_to_a_checkpoint_and_keeps_the_later_ones(tmp_path):
    for attempt, step in ((1, 10), (1, 20), (2, 30)):
        write_checkpoint(tmp_path, attempt, step)
    chosen = f"{tmp_path}/attempt-1/step-00000010"
    assert checkpoints.split_checkpoint(chosen) == (str(tmp_path), chosen)
    assert checkpoints.split_checkpoint(str(tmp_path)) == (str(tmp_path), None)
    lines = []
    checkpoints.go_back_to(chosen, lines.append)
    assert newest(tmp_path) == "attempt-1/step-00000010"
    assert [line.split()[0].removeprefix(f"{tmp_path}/") for line in lines] == [
        "attempt-2/step-00000030",
        "attempt-1/step-00000020",
    ]
    checkpoints.forget_checkpoints(str(tmp_path), keep=1)
    assert (tmp_path / "attempt-1" / "step-00000020" / "ledger.npz").exists()
    flip(tmp_path / "attempt-1" / "step-00000010" / "ledger.npz")
    with pytest.raises(UserError, match=r"step-00000010: ledger\.npz is not what was written"):
        checkpoints.go_back_to(chosen, print)
