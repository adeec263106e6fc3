"""Labels: whatever the container says, checked before anything starts, and delivered beside exactly their
images.
"""

import io
import json
import pickle
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from beit.classification.config import AugmentConfig
from beit.config import ViewConfig
from beit.errors import UserError
from pipelines.config.data import SupervisedDataConfig
from pipelines.config.supervised import FinetuneConfig
from pipelines.datasets import open_labelled
from pipelines.sources import open_source
from pipelines.sources.labels import class_count, label_source, take_at_most, take_fraction
from pipelines.stream.graph import read_slot
from pipelines.stream.ledger import Ledger
from pipelines.stream.rounds import Part
from pipelines.stream.samples import SampleConfig, make_samples

NAMES = ("cat", "dog", "eel")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def png(number):
    """An image that says which it is."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path, labels, kind=None, names=NAMES):
    images = pa.array([{"bytes": png(i), "path": f"{i}.png"} for i in range(len(labels))])
    table = pa.table({"image": images, "label": pa.array(labels, kind)})
    pq.write_table(
        table.replace_schema_metadata({"class_names": json.dumps(names)} if names else {}),
        path,
        row_group_size=7,
    )


def found_in(source):
    """Number of the image -> its label, as the units deliver them in a mixed-up order."""
    found = {}
    for index, count in enumerate(source.manifest.rows.tolist()):
        columns = pickle.loads(pickle.dumps(source.manifest.unit(index))).read(
            np.arange(count)[::-1], ("image", "label")
        )
        for image, label in zip(columns["image"], columns["label"].tolist(), strict=True):
            found[int(np.asarray(Image.open(io.BytesIO(image)))[0, 0, 0])] = label
    return found


def write(kind, root, labels):
    if kind == "parquet":
        write_parquet(root / "a.parquet", labels)
    elif kind == "names":
        write_parquet(root / "a.parquet", [NAMES[label] for label in labels], names=None)
    elif kind == "folders":
        for i, label in enumerate(labels):
            (root / NAMES[label]).mkdir(exist_ok=True)
            (root / NAMES[label] / f"{i}.png").write_bytes(png(i))
    else:
        with tarfile.open(root / "a.tar", "w") as tar:
            for i, label in enumerate(labels):
                for name, content in ((f"{i}.png", png(i)), (f"{i}.cls", str(label).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("kind", ["parquet", "names", "folders", "tar"])
def test_every_image_comes_with_its_label_from_every_kind_of_source(kind, tmp_path):
    labels = np.random.default_rng(0).integers(0, 3, 40).tolist()
    write(kind, tmp_path, labels)
    source = label_source(open_source(str(tmp_path)))
    assert found_in(source) == dict(enumerate(labels))
    assert class_count(source.manifest, None) == 3
    assert source.manifest.class_names == (None if kind == "tar" else NAMES)


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        (
            [0, 1, 2, 3, 0, 1, 2, 2, 7],
            None,
            "2 of 9 labels are none of 0 to 2, the first .*3.* row group 0, row 3",
        ),
        ([0] * 8 + [-1], None, "the first .*-1.* row group 1, row 1"),
        ([0, None, 1], pa.int64(), "1 of 3 labels .* row group 0, row 1"),
        ([0.0, 0.5, 1.0], None, "the first .*0.5.* row 1"),
    ],
)
def test_a_bad_label_is_an_error_that_names_its_file(labels, kind, message, tmp_path):
    write_parquet(tmp_path / "bad.parquet", labels, kind)
    with pytest.raises(UserError, match=message) as told:
        label_source(open_source(str(tmp_path)))
    assert "bad.parquet" in told.value.cause


def test_yes_and_no_are_two_classes_a_missing_name_is_none_and_so_is_a_list_of_labels(tmp_path):
    write_parquet(tmp_path / "a.parquet", [True, False, True], names=("no", "yes"))
    assert label_source(open_source(str(tmp_path / "a.parquet"))).manifest.labels.tolist() == [1, 0, 1]
    write_parquet(tmp_path / "b.parquet", [True, None, False], names=None)
    with pytest.raises(UserError, match="1 of 3 labels are none of 0 to 1"):
        label_source(open_source(str(tmp_path / "b.parquet")), classes=2)
    write_parquet(tmp_path / "d.parquet", pa.array(["a", None, "b"]).dictionary_encode(), names=None)
    with pytest.raises(UserError, match="1 of 3 labels are none of 0 to 1, the first None"):
        label_source(open_source(str(tmp_path / "d.parquet")))
    write_parquet(tmp_path / "c.parquet", [[0, 2], [1], []], names=None)
    with pytest.raises(UserError, match="the column label holds what is neither a number nor a name"):
        label_source(open_source(str(tmp_path / "c.parquet")))


def test_of_several_columns_of_labels_each_has_its_own_names(tmp_path):
    write_parquet(tmp_path / "a.parquet", [0, 1, 2, 1], names=None)
    table = pq.read_table(tmp_path / "a.parquet")
    table = table.append_column("coarse", pa.array([0, 0, 1, 0])).append_column(
        "source", pa.array([7, 7, 8, 8])
    )
    features = {
        "coarse": {"names": ["mammal", "fish"]},
        "label": {"names": list(NAMES)},
        "source": {"dtype": "int64"},
    }
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}),
        tmp_path / "a.parquet",
    )
    for column, names, labels in (
        (None, NAMES, [0, 1, 2, 1]),
        ("coarse", ("mammal", "fish"), [0, 0, 1, 0]),
        ("source", None, [7, 7, 8, 8]),
    ):
        manifest = label_source(open_source(str(tmp_path)), column=column).manifest
        assert (manifest.class_names, manifest.labels.tolist()) == (names, labels)


def test_numbers_that_are_judged_by_names_are_said_to_be_taken_in_their_order(tmp_path):
    for place, labels, names in (("train", [0, 1, 2], NAMES), ("val", [2, 1], None)):
        write_parquet(tmp_path / f"{place}.parquet", labels, names=names)
    data = SupervisedDataConfig(train=str(tmp_path / "train.parquet"), val=str(tmp_path / "val.parquet"))
    lines = []
    open_labelled(FinetuneConfig(data=data), image_size=8, classes=None, seed=0, say=lines.append)
    assert [
        line
        for line in lines
        if line.startswith("warning: data.val has labels by number only") and "0 is cat, 2 is eel" in line
    ]


def test_data_without_labels_is_told_so_with_a_remedy(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    with pytest.raises(UserError, match="has no labels") as told:
        label_source(open_source(str(tmp_path)))
    assert "a folder for each class" in told.value.remedy


def labelled(root, **options):
    return label_source(open_source(str(root)), **options)


def write_pair(tmp_path, kinds, train, val):
    for name, kind, labels in zip(("train", "val"), kinds, (train, val), strict=True):
        (tmp_path / name).mkdir()
        write(kind, tmp_path / name, labels)
    return tmp_path / "train", tmp_path / "val"


@pytest.mark.parametrize("classes", [None, 5], ids=["as many as are named", "more than are named"])
@pytest.mark.parametrize("kind", ["names", "folders"])
def test_a_validation_set_follows_the_numbers_of_the_training_set(kind, classes, tmp_path):
    train, val = write_pair(
        tmp_path, (kind, kind), [0, 1, 2], [2, 2, 1]
    )  # no cat: alone it would number dog 0 and eel 1
    config = FinetuneConfig(data=SupervisedDataConfig(train=str(train), val=str(val)))
    opened = open_labelled(config, image_size=8, classes=classes, seed=0, say=print)
    assert found_in(type("Val", (), {"manifest": opened.val})) == {0: 2, 1: 2, 2: 1}
    assert (opened.classes, opened.class_names) == ((3, NAMES) if classes is None else (5, None))
    with pytest.raises(UserError, match="1 classes that the training data lacks, such as cat"):
        labelled(train, option="data.val", follows=labelled(val).manifest)


def test_names_stand_for_numbers_only_if_all_are_there_or_the_data_says_which(tmp_path):
    train, val = write_pair(tmp_path, ("tar", "folders"), [0, 1, 2], [1, 2])
    numbers = labelled(train).manifest
    with pytest.raises(
        UserError, match="2 classes by name, such as dog, and the training data has 3 by number only"
    ):
        labelled(val, option="data.val", follows=numbers)
    (val / "cat").mkdir()
    (val / "cat" / "9.png").write_bytes(png(9))
    assert found_in(labelled(val, follows=numbers)) == {0: 1, 1: 2, 9: 0}
    for name in NAMES:
        (val / name).rename(val / str(7 + NAMES.index(name)))
    with pytest.raises(UserError, match="3 classes by name, such as 7"):
        labelled(val, follows=numbers)
    write_parquet(tmp_path / "named.parquet", [1, 2])
    assert labelled(tmp_path / "named.parquet", follows=numbers).manifest.labels.tolist() == [1, 2]


def test_a_fraction_takes_the_same_share_of_every_class_and_of_every_smaller_fraction_all(tmp_path):
    labels = [0] * 100 + [1] * 40 + [2] * 3
    write_parquet(tmp_path / "a.parquet", labels)
    source = label_source(open_source(str(tmp_path)))
    tenth, half = (take_fraction(source.manifest, fraction, 5) for fraction in (0.1, 0.5))
    assert np.bincount(tenth.labels).tolist() == [10, 4, 1]
    assert np.bincount(half.labels).tolist() == [50, 20, 2]
    kept = [found_in(type("Part", (), {"manifest": manifest})) for manifest in (tenth, half)]
    assert set(kept[0]) < set(kept[1])
    assert all(labels[i] == label for i, label in kept[1].items())
    assert (tenth.rows > 0).all()
    assert (tenth.labels == take_fraction(source.manifest, 0.1, 5).labels).all()
    assert (
        len(
            {source.manifest.digest, tenth.digest, half.digest, take_fraction(source.manifest, 0.1, 6).digest}
        )
        == 4
    )
    # The ledger is that of the smaller data set: an epoch is complete when the fraction was seen.
    ledger = Ledger(tenth.rows)
    for unit, rows in enumerate(tenth.rows.tolist()):
        ledger.settle(np.zeros(rows, int), np.full(rows, unit), np.arange(rows), np.zeros(rows, int))
    assert (ledger.complete, ledger.settled) == (1, 15)


@pytest.mark.parametrize("most", [7, 20, 143, 500])
def test_no_more_images_are_taken_than_were_allowed_though_there_are_more_classes(tmp_path, most):
    labels = [*range(20)] * 7 + [0, 0, 1]
    write_parquet(tmp_path / "a.parquet", labels, names=None)
    whole = label_source(open_source(str(tmp_path))).manifest
    part = take_at_most(whole, most, 3)
    assert part.total == min(most, len(labels))
    assert all(labels[i] == label for i, label in found_in(type("Part", (), {"manifest": part})).items())
    if most == 20:
        assert sorted(part.labels.tolist()) == [*range(20)]


def test_samples_carry_labels_through_the_mixing_of_a_slot_and_the_same_key_gives_the_same_sample(tmp_path):
    labels = np.random.default_rng(0).integers(0, 3, 40).tolist()
    write_parquet(tmp_path / "a.parquet", labels)
    manifest = label_source(open_source(str(tmp_path))).manifest
    config = SampleConfig(
        seed=1, view=ViewConfig(jitter=0), patch_px=16, augment=AugmentConfig(erase=0.5, operations=0)
    )
    parts = [
        (manifest.unit(unit), Part(0, unit, np.arange(rows)))
        for unit, rows in enumerate(manifest.rows.tolist())
    ]
    [batch] = read_slot(parts, seed=1, rows_per_batch=1000, columns=config.columns)
    samples = make_samples(batch, config=config)
    assert samples["row"].tolist() != list(range(40))
    assert [labels[number] for number in samples["patch_view"][:, 8, 8, 0]] == samples["label"].tolist()
    erased = samples["erase"][:, 2] > 0
    assert 8 < erased.sum() < 32
    again = make_samples({name: column[::-1] for name, column in batch.items()}, config=config)
    np.testing.assert_array_equal(again["erase"][::-1], samples["erase"])
    np.testing.assert_array_equal(again["patch_view"][::-1], samples["patch_view"])
