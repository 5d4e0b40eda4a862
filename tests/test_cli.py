"""The command line as a user meets it: exit codes, messages, what it prints, how fast it answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_export
import tiny_run

from finetune import prediction
from finetune.errors import DataError
from finetune.record import Audit

ROOT = Path(__file__).parents[1]
COMMANDS = ["check", "train", "evaluate", "predict", "push", "compare", "schema", "recipes"]


def finetune(*arguments, stdin="", cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, "-m", "finetune", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"} | environment,
        timeout=200,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command):
    ended = finetune(command, "--help")
    assert ended.returncode == 0
    assert "Example: " in ended.stdout or command == "recipes"


def test_a_bad_recipe_exits_2_with_all_problems_and_without_torch(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(
        "task: sequence\nmodel: {checkpoint: a/b}\ndata: {path: a/b, max_lenght: 5}\ntrain: {epochs: many}\n"
    )
    program = (
        "import sys\nfrom finetune.cli import main\n"
        "sys.argv = ['finetune', 'check', sys.argv[1]]\n"
        "try:\n    main()\nfinally:\n    assert not {'torch', 'rich'} & set(sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert ended.returncode == 2
    assert "did you mean max_length?" in ended.stderr
    assert "train.epochs" in ended.stderr
    assert "output" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_wrong_option_exits_2():
    ended = finetune("train", "--no-such-option")
    assert ended.returncode == 2
    assert "No such option" in ended.stderr


def test_schema_and_shipped_recipes(tmp_path):
    assert json.loads(finetune("schema").stdout)["title"] == "finetune recipe"
    assert "quickstart/quickstart" in finetune("recipes", "list").stdout
    shown = finetune("recipes", "show", "quickstart/quickstart").stdout
    assert shown == (ROOT / "recipes" / "quickstart" / "quickstart.yaml").read_text(encoding="utf-8")
    copied = finetune("recipes", "copy", "quickstart/quickstart", tmp_path / "mine").stdout.split()
    assert sorted(Path(path).name for path in copied) == ["quickstart.yaml", "test.csv", "train.csv", "validation.csv"]
    again = finetune("recipes", "copy", "quickstart/quickstart", tmp_path / "mine")
    assert again.returncode == 2
    assert "exists already" in again.stderr
    wrong = finetune("recipes", "show", "quickstart/quikstart")
    assert wrong.returncode == 2
    assert "did you mean quickstart/quickstart?" in wrong.stderr


def test_check_prints_recipe_head_swap_and_preview(tmp_path, tiny_checkpoint):
    ended = finetune("check", tiny_run.write_recipe(tmp_path, tiny_checkpoint), "train.epochs=1")
    assert ended.returncode == 0, ended.stderr
    for part in (
        "epochs: 1",
        "head swap",
        "classifier.weight",
        "[CLS]",
        "tokens: 5 %",
        "everything checked is in order",
    ):
        assert part in ended.stdout


@pytest.mark.parametrize(("own", "spins"), [({}, "30000"), ({"OMP_WAIT_POLICY": "active"}, "30000000000")])
def test_threads_that_wait_do_not_spin_for_long(tmp_path, tiny_checkpoint, own, spins):
    ended = finetune("check", tiny_run.write_recipe(tmp_path, tiny_checkpoint), OMP_DISPLAY_ENV="verbose", **own)
    assert f"GOMP_SPINCOUNT = '{spins}'" in ended.stderr  # as libgomp understood it


def test_check_gives_programs_the_audit_and_breaks_on_its_rules(tmp_path, tiny_checkpoint):
    path = tiny_run.write_recipe(tmp_path, tiny_checkpoint)
    train = (tmp_path / "train.csv").read_text(encoding="utf-8").splitlines()
    test = [train[0], "unlike all others,pos", *train[3:5]]
    (tmp_path / "test.csv").write_text("\n".join(test), encoding="utf-8")
    ended = finetune("check", path, "--json")
    assert ended.returncode == 0, ended.stderr
    audit = Audit.model_validate_json(ended.stdout)
    [leak] = [finding for finding in audit.findings if finding.kind == "leakage" and finding.split == "test"]
    assert (leak.count, leak.rows, leak.places[0]) == (2, 3, "test.csv, line 3 = train.csv, line 4")
    refused = finetune("check", path, "audit.max_leakage=0")
    assert refused.returncode == 2
    assert (
        "2 of 3 rows (67 %) have the text of a row of train; audit.max_leakage allows 0 of them: test.csv, line 3"
        in refused.stderr
    )


def test_check_names_every_problem_of_services(tmp_path, tiny_checkpoint):
    text = "track: {wandb: {mode: online}}\ncarbon: {country: ZZZ}\nhub: {repo_id: me/model}\n"
    path = tiny_run.write_recipe(tmp_path, tiny_checkpoint, text)
    dead = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_x", "HOME": str(tmp_path), "HF_HOME": str(tmp_path)}
    card = ("card.license=apache", "card.language=[en, english]")
    ended = finetune("check", path, *card, WANDB_API_KEY="", **dead)
    assert ended.returncode == 2
    assert "track.wandb" in ended.stderr
    assert "carbon.country: CodeCarbon knows no grid of 'ZZZ'" in ended.stderr
    assert "hub.repo_id: me/model cannot be checked" in ended.stderr
    assert "card.license: the Hub does not know 'apache'" in ended.stderr
    assert "card.language: the Hub does not know 'english'; expected an ISO 639 code" in ended.stderr


def test_predict_reads_and_writes_json_lines(tmp_path):
    folder = tiny_export.build(tmp_path / "export")
    lines = [{"text": "good film", "id": 1}, {"text": "bad"}]
    ended = finetune("predict", folder, stdin="".join(json.dumps(line) + "\n" for line in lines))
    assert ended.returncode == 0, ended.stderr
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [{k: v for k, v in line.items() if k != "prediction"} for line in found] == lines
    assert all(line["prediction"]["label"] in tiny_export.LABELS for line in found)


def test_predict_names_the_line_of_a_bad_input(tmp_path):
    folder = tiny_export.build(tmp_path / "export")
    ended = finetune("predict", folder, stdin='{"text": "good"}\n{"txt": "bad"}\n')
    assert ended.returncode == 2
    assert "input, line 2: expected a text under text, found the keys txt" in ended.stderr


def test_predict_replaces_its_output_once_it_is_whole(tmp_path):
    folder = tiny_export.build(tmp_path / "export")
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "good"}\n', encoding="utf-8")
    path.chmod(0o600)
    for model, code in (("./nowhere", 2), (folder, 0)):  # the second one reads what the first one left
        ended = finetune("predict", model, "--input", path, "--output", path)
        assert ended.returncode == code, ended.stderr
    assert json.loads(path.read_text())["prediction"]["label"] in tiny_export.LABELS
    assert path.stat().st_mode & 0o777 == 0o600
    ended = finetune("predict", folder, "--input", path, "--output", "/dev/stdout")  # here a pipe
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["text"] == "good"
    ended = finetune("predict", folder, "--input", path, "--output", "/dev/full")
    assert (ended.returncode, ended.stderr.count("\n")) == (5, 1), ended.stderr
    assert "--output: writing /dev/full failed (No space left on device)" in ended.stderr
    assert sorted(found.name for found in tmp_path.iterdir()) == ["export", "rows.jsonl"]


def test_predict_ends_quietly_when_its_reader_has_enough(tmp_path):
    folder = tiny_export.build(tmp_path / "export")
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-m", "finetune", "predict", folder],
        input=b'{"text": "good"}\n',
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
        cwd=ROOT,
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_a_stop_before_the_run_has_begun_is_one_too(tmp_path, tiny_checkpoint):
    program = (
        "import builtins, os, signal, sys\nfrom finetune import cli\ninner = builtins.__import__\n"
        "def stop(name, *rest, **more):\n    if name == 'torch':\n        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return inner(name, *rest, **more)\nbuiltins.__import__ = stop\n"
        "sys.argv = ['finetune', 'train', sys.argv[1]]\ncli.main()"
    )
    path = tiny_run.write_recipe(tmp_path, tiny_checkpoint)
    ended = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (ended.returncode, ended.stderr) == (75, "stopped (SIGTERM); the same command continues\n")


INPUTS = {
    "not finite": ('{"text": NaN}\n', "input, line 1: not JSON (NaN is no number of JSON)"),
    "a number": ('{"text": 5}\n', "input, line 1: expected a text under text, found 5"),
    "no key": ("{}\n", "input, line 1: expected a text under text, found no keys"),
    "deep": ("[" * 100_000 + "\n", "input, line 1: not JSON (nested too deeply)"),
    "latin-1": ('{"text": "good"}\n{"text": "caf\udce9"}\n', "input, line 2: not UTF-8 (byte 0xe9)"),
    "half a pair": ('{"text": "a\\ud800"}\n', "input, line 1: half of a surrogate pair"),
}


@pytest.mark.parametrize(("content", "expected"), INPUTS.values(), ids=INPUTS)
def test_predict_refuses_lines_that_are_no_input(content, expected, monkeypatch):
    monkeypatch.setattr(prediction, "pipeline", lambda _: tiny_pipe)
    with pytest.raises(DataError) as caught:
        list(prediction.predict_lines("any", content.splitlines(keepends=True)))
    assert str(caught.value).startswith(expected)


class tiny_pipe:  # noqa: N801  (stands for an object)
    """As much of a pipeline as is looked at before the first answer."""

    class model:  # noqa: N801
        class config:  # noqa: N801
            architectures = ("BertForSequenceClassification",)

    @staticmethod
    def tokenizer(text):
        del text
        return {"input_ids": [2, 3]}


def test_predict_reads_bytes_that_are_no_utf_8_as_one_bad_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "good"}\n{"text": "caf\xe9"}\n')
    ended = finetune("predict", tiny_export.build(tmp_path / "export"), "--input", path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("input, line 2: not UTF-8 (byte 0xe9)")


PLACES = {
    "no input": (("predict", "./m", "--input", "nowhere.jsonl"), "--input: nowhere.jsonl cannot be read (No such file"),
    "a folder": (("predict", "./m", "--input", "."), "--input: . cannot be read (Is a directory"),
    "no output": (
        ("predict", "./m", "--output", "no/x"),
        "--output: no/x cannot be written (No such file or directory",
    ),
    "no record": (("evaluate", "r.yaml", "--checkpoint", "./m", "--json", "no/x"), "--json: no/x cannot be written"),
    "a file": (("recipes", "copy", "token/tiny", "r.yaml"), "r.yaml cannot be written (File exists"),
}


@pytest.mark.parametrize(("arguments", "expected"), PLACES.values(), ids=PLACES)
def test_a_place_that_cannot_be_read_or_written_is_said_before_any_work(tmp_path, arguments, expected):
    (tmp_path / "r.yaml").write_text("task: sequence\nmodel: {checkpoint: ./m}\ndata: {path: ./a.csv}\noutput: out\n")
    ended = finetune(*arguments, cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith(expected)
    assert "Traceback" not in ended.stderr


def test_check_names_what_is_wrong_with_checkpoint_and_data_together(tmp_path):
    path = tiny_run.write_recipe(tmp_path, "./nowhere")
    (tmp_path / "train.csv").write_text("text,label\ngood\n")
    ended = finetune("check", path)
    assert ended.returncode == 2
    assert "model.checkpoint: ./nowhere is not a folder with a config.json" in ended.stderr
    assert "train.csv, line 2: expected 2 cells, found 1" in ended.stderr


def test_evaluate_matches_labels_by_name_or_refuses_with_both_lists(tmp_path):
    folder = tiny_export.build(tmp_path / "export")
    path = tiny_run.write_recipe(tmp_path, folder)
    path.write_text(path.read_text().split("train:\n")[0] + "output: " + str(tmp_path / "out") + "\n")
    refused = finetune("evaluate", path, "--checkpoint", folder)
    assert refused.returncode == 2
    assert "its labels are negative, neutral, positive; the data's are neg, pos" in refused.stderr
    target = tmp_path / "record.json"
    ended = finetune(
        "evaluate", path, "--checkpoint", folder, "--labels", "negative=neg,positive=pos", "--json", target,
        "--split", "validation",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    record = json.loads(target.read_text())
    assert record["results"]["validation"]["n"] == 20
    assert "accuracy" in ended.stdout


def test_version_of_python_m_and_command_are_the_same_program():
    assert "fine-tune" in finetune("--help").stdout.lower()


def test_push_needs_a_finished_run(tmp_path):
    ended = finetune("push", tmp_path, "--repo-id", "me/model")
    assert ended.returncode == 2
    assert "holds no run; expected the folder of a finished run" in ended.stderr
