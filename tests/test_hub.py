"""Sets that `datasets` loads: here from folders in the Hub's layout, which take the same way without a network."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hub_server import HubServer
from row_recipes import make, write

from finetune import data
from finetune.data import hub
from finetune.data.hub import HubSet
from finetune.errors import DataError

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    """Folders: `plain` (train, validation, test), `several` (configurations a and b), `raw` (one split, raw)."""
    import datasets

    folder = tmp_path_factory.mktemp("sets")
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["neg", "pos"]),
            "emotions": datasets.List(datasets.ClassLabel(names=["joy", "fear"])),
            "translation": datasets.Translation(languages=["en", "fr"]),
        }
    )
    row = {"label": 1, "emotions": [0, 1], "translation": {"en": "yes", "fr": "oui"}}
    rows = datasets.Dataset.from_list([{"text": f"text {i}", **row} for i in range(20)], features=features)
    for split in ("train", "validation", "test"):
        (folder / "plain").mkdir(exist_ok=True)
        rows.to_parquet(folder / "plain" / f"{split}.parquet")
    configs = "".join(f"- config_name: {c}\n  data_files: {c}.csv\n" for c in "ab")
    write(folder, "several/README.md", f"---\nconfigs:\n{configs}---\n")
    for name in "ab":
        write(folder, f"several/{name}.csv", "text,label\nx,y\n")
    write(
        folder,
        "raw/README.md",
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: raw\n    path: a.csv\n---\n",
    )
    write(folder, "raw/a.csv", "text,label\nx,y\n")
    card = "---\ndataset_info:\n  features:\n  - name: text\n    dtype: string\n---\n"
    write(folder, "broken/README.md", card)
    write(folder, "broken/train.jsonl", '{"text": "a"\n')
    card = "---\nconfigs:\n- config_name: default\n  data_files: a.csv\n  sep: ';'\n---\n"
    write(folder, "semicolons/README.md", card)
    write(folder, "semicolons/a.csv", "text;label\nx;y\n")
    write(folder, "exact/train.csv", "text,label\nNA,001\n1e5,002\n")
    write(folder, "exact/test.csv", "text,label\nnull,001\n")
    write(folder, "code/code.py", "raise SystemExit('code of a data set ran')\n")
    return folder


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch, sets, request):
    import datasets

    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.chdir(sets)
    if "folder" not in request.node.name:
        monkeypatch.setattr(hub, "refuse_folder", lambda path: None)


def load(tmp_path, path: str, role: str = "text", **keys):
    """`path` is a folder of `sets`, which `datasets` takes where a recipe has a Hub id."""
    return data.load(make(tmp_path, path, role, **keys))


def test_splits_class_names_and_places(tmp_path):
    loaded = load(tmp_path, "plain", columns={"text": "text", "label": "label"})
    assert list(loaded) == ["train", "validation", "test"]
    rows = loaded["validation"]
    assert rows.column("text") == [f"text {i}" for i in range(20)]
    assert rows.column("label") == [1] * 20
    assert rows.class_names == {"label": ["neg", "pos"]}
    assert rows.source == "plain validation"
    assert rows.where(3) == "plain validation, row 3"
    assert rows.column("id")[:2] == ["0", "1"]


def test_lists_of_classes_and_columns_inside_a_column(tmp_path):
    rows = load(tmp_path, "plain", columns={"text": "text", "labels": "emotions"})["train"]
    assert rows.column("labels")[0] == [0, 1]
    assert rows.class_names == {"labels": ["joy", "fear"]}
    columns = {"source": "translation.en", "target": "translation.fr"}
    rows = load(tmp_path, "plain", "source", columns=columns)["train"]
    assert (rows.column("source")[0], rows.column("target")[0]) == ("yes", "oui")


def test_slices_of_splits(tmp_path):
    splits = {"train": "train[:50%]", "validation": "train[15:]+test[:2]"}
    loaded = load(tmp_path, "plain", columns={"text": "text", "label": "label"}, splits=splits)
    assert loaded["train"].column("text") == [f"text {i}" for i in range(10)]
    assert loaded["validation"].column("text") == [f"text {i}" for i in [*range(15, 20), 0, 1]]
    assert loaded["train"].source == "plain train[:50%]"
    again = load(tmp_path, "plain", columns={"text": "text", "label": "label"}, splits={"train": "train[5:9]"})
    assert again["train"].column("text") == [f"text {i}" for i in range(5, 9)]
    with pytest.raises(DataError, match=r"data.splits: train\[:x\]"):
        load(tmp_path, "plain", columns={"text": "text", "label": "label"}, splits={"train": "train[:x]"})


def test_the_second_start_maps_the_rows_of_the_first(tmp_path, monkeypatch):
    keys = {"columns": {"text": "text", "label": "label"}}
    first = load(tmp_path, "plain", **keys)
    monkeypatch.setattr(data, "parse", None)  # not called again
    second = load(tmp_path, "plain", **keys)
    assert {split: rows.fingerprint for split, rows in second.items()} == {s: r.fingerprint for s, r in first.items()}


def test_what_exists_is_named_when_something_does_not(tmp_path):
    with pytest.raises(DataError, match=r"data.name: several: it has several configurations; expected one of a, b"):
        load(tmp_path, "several")
    with pytest.raises(
        DataError, match=r"data.name: several \(c\): there is no configuration 'c'; expected one of a, b"
    ):
        load(tmp_path, "several", name="c")
    assert load(tmp_path, "several", name="b")["train"].source == "several (b)/b.csv"
    with pytest.raises(DataError, match=r"data.splits.train: no split 'tran'; plain has train, validation, test"):
        load(tmp_path, "plain", splits={"train": "tran"})
    with pytest.raises(DataError, match=r"none of train, validation, test exists; raw has raw; name what to use"):
        load(tmp_path, "raw")
    with pytest.raises(DataError) as caught:
        load(tmp_path, "plain", columns={"text": "txt", "label": "label"}, splits={"train": "train"})
    assert str(caught.value) == (
        "data: plain train: data.columns.text: no column 'txt' (did you mean text?);"
        " the columns are 'text', 'label', 'emotions', 'translation'"
    )


def test_a_broken_file_is_one_line_with_the_reason(tmp_path):
    with pytest.raises(DataError, match=r"^data.path: broken: a file of the set cannot be read: .*") as caught:
        load(tmp_path, "broken")
    assert "\n" not in str(caught.value)


def test_text_files_are_read_byte_for_byte_and_not_by_datasets(tmp_path):
    loaded = load(tmp_path, "exact")
    assert loaded["train"].column("text") == ["NA", "1e5"]
    assert loaded["train"].column("label") == ["001", "002"]
    assert loaded["test"].column("text") == ["null"]
    assert loaded["test"].where(0) == "exact/test.csv, line 2"
    with pytest.raises(DataError, match=r"no slices of exact, whose files are read as they are"):
        load(tmp_path, "exact", splits={"train": "train[:1]"})


def test_settings_of_the_set_are_left_to_datasets(tmp_path):
    rows = load(tmp_path, "semicolons")["train"]
    assert (rows.column("text"), rows.where(0)) == (["x"], "semicolons train, row 0")


def test_text_files_of_an_earlier_start_serve_without_a_network(tmp_path, monkeypatch):
    import datasets

    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach it on the Hub")

    before = load(tmp_path, "exact")["train"]
    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    after = load(tmp_path, "exact")["train"]
    assert (after.fingerprint, after.where(0)) == (before.fingerprint, before.where(0))
    with pytest.raises(DataError, match="Couldn't reach"):
        load(tmp_path, "plain")


def test_code_of_a_data_set_is_refused_with_the_way_out():
    with pytest.raises(DataError, match=r"code of its own, which is never run; data.revision: refs/convert/parquet"):
        HubSet("code/code.py", None, None)


def test_a_folder_is_never_taken_for_a_set_of_the_hub(tmp_path):
    with pytest.raises(DataError, match=r"expected a set of the Hub, .*; for the folder write ./plain"):
        load(tmp_path, "plain")


OFFLINE = """
from finetune import data, recipe
from finetune.errors import DataError
try:
    data.load(recipe.load("recipe.yaml"))
except DataError as error:
    print(error)
"""


def test_without_a_network_the_message_says_what_helps(tmp_path):
    make(tmp_path, "user/set")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    environment |= {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    answer = subprocess.run(
        [sys.executable, "-c", OFFLINE], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert answer.stdout.startswith("data.path: user/set: Couldn't reach 'user/set' on the Hub")
    assert answer.stdout.endswith(
        "; without a network, use local files or a set that was downloaded before (HF_HUB_OFFLINE=1)\n"
    )


LOAD = """
import sys
from finetune import data, recipe
rows = data.load(recipe.load("recipe.yaml"))["train"]
print([rows.column("text"), rows.column("label"), rows.class_names, rows.where(0), rows.fingerprint, rows.commit])
print("datasets" in sys.modules)
"""


def as_parquet(texts):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    buffer = io.BytesIO()
    Dataset.from_dict({"text": texts, "label": [1] * len(texts)}, features=features).to_parquet(buffer)
    return buffer.getvalue()


def as_csv(texts):
    return ("text,label\n" + "".join(f"{text},pos\n" for text in texts)).encode()


@pytest.mark.parametrize(("name", "content"), [("train.parquet", as_parquet), ("train.csv", as_csv)])
def test_a_set_whose_commit_is_known_is_had_without_datasets(tmp_path, name, content):
    with HubServer() as server:
        repo = server.create("user/set", private=False, files={name: content(["one"])})
        make(tmp_path, "user/set", columns={"text": "text", "label": "label"}, splits={"train": "train"})
        environment = os.environ | {
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}",
        }

        def start():
            """What a fresh process has of the rows, whether it has imported datasets, and how often it asks."""
            server.requests.clear()
            command = [sys.executable, "-c", LOAD]
            answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
            rows, imported = answer.stdout.splitlines()
            return rows, imported == "True", len(server.requests)

        first, imported, _ = start()
        assert imported
        assert "'one'" in first
        assert repo.refs["refs/heads/main"] in first
        assert start() == (first, False, 1)

        shutil.rmtree(tmp_path / "cache" / "rows")  # the rows are read again from what `datasets` has on disk
        assert start()[0] == first

        files = repo.resolve("main").files | {name: server.entry(content(["two"]))}
        repo.refs["refs/heads/main"] = repo.add(files, repo.refs["refs/heads/main"], "other rows").oid
        second, imported, _ = start()
        assert imported
        assert "'two'" in second
        assert start() == (second, False, 1)

        commit = next(iter(repo.commits))
        keys = {"columns": {"text": "text", "label": "label"}, "splits": {"train": "train"}, "revision": commit}
        make(tmp_path, "user/set", **keys)
        assert start()[0] == first
        assert start() == (first, False, 0)
