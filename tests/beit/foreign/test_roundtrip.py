"""From the released code's format to ours, to Hugging Face's, to ours, to the released code's: bit by bit the
same.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from beit.config import ViewConfig
from beit.errors import UserError
from beit.foreign import outgoing
from beit.foreign.incoming import import_weights
from beit.foreign.outgoing import export_weights
from beit.loading import load_model
from beit.plain import to_dict
from beit.vit.checkpoints import read_config, save_model

MODELS = (
    "mim, paper",
    "mim, released",
    "classifier, paper, class token",
    "classifier, released",
    "segmenter",
)
HALF = ViewConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def as_published(model: nn.Module, path: Path) -> dict[str, Tensor]:
    """The released code's file of a model, written here without the code under test; returns its tensors."""
    state = {}
    for name, tensor in model.state_dict().items():
        state[name] = tensor
        if name.endswith("relative_position_bias_table"):
            side, tokens = 4, 17
            index = torch.zeros(tokens, tokens, dtype=torch.int64)
            for i in range(side**2):
                for j in range(side**2):
                    dy, dx = i // side - j // side, i % side - j % side
                    index[1 + i, 1 + j] = (dy + side - 1) * (2 * side - 1) + dx + side - 1
            rows = len(tensor)
            index[0, :], index[:, 0], index[0, 0] = rows - 3, rows - 2, rows - 1
            state[name.replace("bias_table", "index")] = index
    torch.save(
        {"state_dict": state, "meta": {}} if model.kind == "segmenter" else {"model": state, "epoch": 7}, path
    )
    return state


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [
        name
        for name in left
        if left[name].dtype != right[name].dtype or not torch.equal(left[name], right[name])
    ] == []


def read_pth(path: Path) -> dict[str, Tensor]:
    content = torch.load(path, weights_only=True)
    return content.get("model") or content["state_dict"]


@pytest.mark.parametrize("which", MODELS)
def test_a_round_trip_changes_no_bit(which, build, tmp_path: Path):
    published = as_published(build(which), tmp_path / "published.pth")
    heads = 3 if "paper" in which else None
    first = import_weights(tmp_path / "published.pth", tmp_path / "ours", heads=heads)
    export_weights(tmp_path / "ours", tmp_path / "hf", format="hf")
    second = import_weights(tmp_path / "hf", tmp_path / "again")
    export_weights(tmp_path / "again", tmp_path / "back.pth", format="unilm")
    same(read_pth(tmp_path / "back.pth"), published)
    assert first.described.model == second.described.model
    assert first.view == second.view
    assert read_config(tmp_path / "ours").head == read_config(tmp_path / "again").head
    for name in ("ours", "again"):
        same(load_model(tmp_path / name).state_dict(), build(which).state_dict())


@pytest.mark.parametrize("which", MODELS)
def test_hugging_face_loads_the_folder_whole_and_both_its_spellings_are_read(which, build, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    model = build(which)
    save_model(model, tmp_path / "ours", extra={"view": to_dict(HALF)})
    exported = export_weights(tmp_path / "ours", tmp_path / "hf", format="hf")
    kind = getattr(transformers, exported.next_step.split(".")[1])
    loaded, info = kind.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values()), info
    # What their own class writes: the hub's names in the file, other names in memory.
    loaded.save_pretrained(tmp_path / "theirs")
    same(
        load_file(tmp_path / "theirs" / "model.safetensors"), load_file(tmp_path / "hf" / "model.safetensors")
    )
    torch.save(loaded.state_dict(), tmp_path / "modules.bin")
    read = import_weights(tmp_path / "modules.bin", tmp_path / "again", heads=3)
    assert read.spelling == "v5"
    same(load_model(tmp_path / "again").state_dict(), model.state_dict())
    assert read_config(tmp_path / "again").head.get("vocab_size") == (50 if model.kind == "mim" else None)


@pytest.mark.parametrize("which", ["mim, paper", "mim, released"])
def test_hugging_face_predicts_the_same_masked_tokens(which, build, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    model = build(which)
    save_model(model, tmp_path / "ours", extra={"view": to_dict(HALF)})
    export_weights(tmp_path / "ours", tmp_path / "hf", format="hf")
    theirs = transformers.BeitForMaskedImageModeling.from_pretrained(tmp_path / "hf").eval()
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (4, 3, 64, 64), generator=generator, dtype=torch.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf")
    pixels = processor(list(images), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, images / 127.5 - 1, rtol=0, atol=1e-6)
    mask = torch.rand(4, 16, generator=generator) < 0.4
    with torch.no_grad():
        ours, expected = model(images / 127.5 - 1, mask), theirs(pixels, bool_masked_pos=mask).logits[mask]
    assert float((ours - expected).abs().max() / expected.abs().max()) < 1e-5
    assert torch.equal(ours.argmax(-1), expected.argmax(-1))


def test_class_names_and_pixels_travel(build, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    model = build("classifier, released")
    save_model(model, tmp_path / "ours", extra={"view": to_dict(HALF)})
    export_weights(tmp_path / "ours", tmp_path / "hf", format="hf")
    theirs = transformers.BeitForImageClassification.from_pretrained(tmp_path / "hf").eval()
    assert theirs.config.id2label == dict(enumerate(model.class_names))
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), theirs(pixels).logits, rtol=1e-5, atol=1e-5)
    read = import_weights(tmp_path / "hf", tmp_path / "again")
    assert load_model(tmp_path / "again").class_names == model.class_names
    assert (read.view.mean, read.view.std) == (HALF.mean, HALF.std)


def test_a_segmenter_says_which_blocks_hugging_face_taps(build, tmp_path: Path):
    save_model(build("segmenter"), tmp_path / "ours")
    taps = read_config(tmp_path / "ours").head["taps"]
    exported = export_weights(tmp_path / "ours", tmp_path / "hf", format="hf")
    indices = json.loads((tmp_path / "hf" / "config.json").read_text())["out_indices"]
    assert [index - 2 for index in indices] == [min(tap, 4) for tap in taps]
    assert any("cannot read the last block" in note for note in exported.notes)


def test_a_segmenter_of_hugging_faces_gives_the_same_numbers_here(build, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    model = build("segmenter")
    save_model(model, tmp_path / "ours")
    export_weights(tmp_path / "ours", tmp_path / "hf", format="hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    del config["beit_taps"]  # As in a folder of theirs.
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"out_indices": [2, 4, 5, 6]}))
    import_weights(tmp_path / "hf", tmp_path / "again")
    theirs = transformers.BeitForSemanticSegmentation.from_pretrained(tmp_path / "hf").eval()
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, expected = load_model(tmp_path / "again")(pixels), theirs(pixels).logits
    expected = torch.nn.functional.interpolate(
        expected, size=ours.shape[2:], mode="bilinear", align_corners=False
    )
    assert float((ours - expected).abs().max() / expected.abs().max()) < 1e-5


def test_pretraining_comes_back_from_timms_format_as_a_backbone(build, tmp_path: Path):
    model = build("mim, released")
    save_model(model, tmp_path / "ours")
    export_weights(tmp_path / "ours", tmp_path / "timm.safetensors", format="timm")
    import_weights(tmp_path / "timm.safetensors", tmp_path / "again")
    back = load_model(tmp_path / "again")
    assert back.kind == "backbone"
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(back.features(pixels), model.features(pixels), rtol=0, atol=0)
    export_weights(tmp_path / "again", tmp_path / "second.safetensors", format="timm")
    same(load_file(tmp_path / "second.safetensors"), load_file(tmp_path / "timm.safetensors"))


def test_hugging_face_loads_a_backbone_whole_and_gives_the_same_numbers(build, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    export = tmp_path / "timm.pth"
    save_model(build("mim, released"), tmp_path / "ours")
    export_weights(tmp_path / "ours", export, format="timm")
    import_weights(export, tmp_path / "backbone")
    export_weights(tmp_path / "backbone", tmp_path / "hf", format="hf")
    theirs, info = transformers.BeitModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values()), info
    theirs.save_pretrained(tmp_path / "theirs")
    for number, folder in enumerate(("hf", "theirs")):
        import_weights(tmp_path / folder, tmp_path / f"again{number}")
        same(
            load_model(tmp_path / f"again{number}").state_dict(),
            load_model(tmp_path / "backbone").state_dict(),
        )
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (ours,), expected = (
            load_model(tmp_path / "backbone").features(pixels),
            theirs.eval()(pixels).last_hidden_state,
        )
    assert float((ours - expected).abs().max() / expected.abs().max()) < 1e-5


def test_nothing_is_left_of_an_export_that_fails(build, tmp_path: Path, monkeypatch):
    save_model(build("mim, paper"), tmp_path / "ours")
    before = sorted(tmp_path.iterdir())

    def full(*_arguments: object, **_options: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("beit.foreign.outgoing.save_file", full)
    for out, format in (("hf", "hf"), ("timm.safetensors", "timm")):
        with pytest.raises(OSError, match="no space left"):
            export_weights(tmp_path / "ours", tmp_path / out, format=format)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("format", ["hf", "timm", "unilm"])
def test_a_name_that_the_other_side_would_miss_is_counted_and_nothing_is_written(
    format, build, tmp_path: Path, monkeypatch
):
    save_model(build("mim, paper"), tmp_path / "ours")
    out = tmp_path / {"hf": "hf", "timm": "timm.pth", "unilm": "unilm.pth"}[format]
    complete = outgoing._take

    def forgetful(report, written, name, new, tensor) -> None:
        if name != "norm.bias":
            complete(report, written, name, new, tensor)

    monkeypatch.setattr(outgoing, "_take", forgetful)
    with pytest.raises(ValueError, match=r"missing are \['norm.bias'\]"):
        export_weights(tmp_path / "ours", out, format=format)
    assert not out.exists()


def test_the_released_codes_options_are_named_with_a_file_for_it(build, tmp_path: Path):
    save_model(build("mim, paper"), tmp_path / "plain", extra={"view": to_dict(ViewConfig())})
    save_model(build("mim, released"), tmp_path / "released", extra={"view": to_dict(HALF)})
    plain = export_weights(tmp_path / "plain", tmp_path / "plain.pth", format="unilm")
    options = (
        "--imagenet_default_mean_and_std --abs_pos_emb --disable_rel_pos_bias --layer_scale_init_value 0"
    )
    assert any(options in note for note in plain.notes)
    released = export_weights(tmp_path / "released", tmp_path / "released.pth", format="unilm")
    assert released.notes == [
        "pixels in [0, 1] are normalised with mean [0.5, 0.5, 0.5] and std [0.5, 0.5, 0.5]"
    ]


@pytest.mark.parametrize("which", ["mim, paper", "mim, released", "classifier, released"])
@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_timm_gets_its_names_and_is_told_what_it_has_no_place_for(which, ending, build, tmp_path: Path):
    model = build(which)
    save_model(model, tmp_path / "ours")
    exported = export_weights(tmp_path / "ours", tmp_path / f"timm{ending}", format="timm")
    written = (
        load_file(exported.path) if ending == ".safetensors" else torch.load(exported.path, weights_only=True)
    )
    state = model.state_dict()
    table = state.pop("rel_pos_bias.relative_position_bias_table", None)
    gone = {name for name in state if name.startswith(("lm_head", "mask_token"))}
    assert exported.report.dropped.keys() == gone
    expected = {name: tensor for name, tensor in state.items() if name not in gone}
    if table is not None:
        expected |= {f"blocks.{number}.attn.relative_position_bias_table": table for number in range(3)}
    same(written, expected)
    assert exported.next_step.startswith("timm.create_model(")


@pytest.mark.parametrize(
    "which", ["mim, paper", "mim, released", "classifier, paper, class token", "classifier, released"]
)
def test_timm_runs_what_it_is_told_and_gives_the_same_numbers(which, build, tmp_path: Path):
    timm = pytest.importorskip("timm", exc_type=ImportError)
    model = build(which)
    save_model(model, tmp_path / "ours")
    exported = export_weights(tmp_path / "ours", tmp_path / "timm.safetensors", format="timm")
    theirs = eval(exported.next_step, {"timm": timm}).eval()
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        tokens = theirs(pixels)
        ours = model(pixels) if model.kind == "classifier" else model.features(pixels)[0][:, 0]
    torch.testing.assert_close(ours, tokens, rtol=1e-5, atol=1e-5)


def test_a_file_of_timms_is_read(build, tmp_path: Path):
    model = build("classifier, released")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert set(import_weights(tmp_path / "model.safetensors", tmp_path / "ours").report.same) == set(
        model.state_dict()
    )
    same(load_model(tmp_path / "ours").state_dict(), model.state_dict())


def test_what_a_format_cannot_hold_is_refused(build, tmp_path: Path):
    save_model(build("segmenter"), tmp_path / "segmenter")
    save_model(build("mim, paper"), tmp_path / "mim")
    with pytest.raises(UserError, match="timm has no segmentation heads"):
        export_weights(tmp_path / "segmenter", tmp_path / "x.pth", format="timm")
    with pytest.raises(UserError, match=r"does not end in \.pth"):
        export_weights(tmp_path / "mim", tmp_path / "x", format="unilm")
    with pytest.raises(UserError, match="exists already"):
        export_weights(tmp_path / "mim", tmp_path / "segmenter", format="hf")
