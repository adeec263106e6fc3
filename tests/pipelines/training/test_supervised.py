from pipelines.finetune import ClassificationTask


class Explained(ClassificationTask):
    """A job with a preset of its own for those who name none, and an explanation."""

    default_preset = "tiny64"

    def explain(self, config, preset):
        return [f"{preset}: views of {config.model.image_size} px"]


def test_a_task_says_which_preset_is_the_default_and_what_a_dry_run_adds(capsys):
    assert Explained().parse([]).preset == "tiny64"
    assert Explained().parse(["--dry-run"]) is None
    assert capsys.readouterr().err == "tiny64: views of 64 px\n"
