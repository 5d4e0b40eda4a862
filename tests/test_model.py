"""Which weights are reused, new and dropped; what is refused; what is exported."""

import io
import json

import pytest
import tiny_export
import tiny_run
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

from finetune import lora, model, optim, preparation, pretrained
from finetune.dropout import install_dropout
from finetune.errors import ModelError
from finetune.events import Events
from finetune.pretrained import Checkpoint
from finetune.recipe import LoraBlock, load

HEAD = ["classifier.bias", "classifier.weight"]


def prepared(folder, checkpoint, text="", **train):
    return preparation.prepare(load(tiny_run.write_recipe(folder, checkpoint, text, **train)), Events())


def loaded(ready):
    return model.load_for_training(ready.checkpoint, ready.config, ready.task, ready.recipe)


def test_head_swap_of_an_encoder(tmp_path, tiny_checkpoint):
    swap = loaded(prepared(tmp_path, tiny_checkpoint)).head_swap
    assert swap.new.names == HEAD
    assert swap.dropped.names == []
    assert swap.reused.count == len(load_file(tiny_checkpoint / "model.safetensors"))
    assert "bert.pooler.dense.weight" in swap.reused.names


def test_a_head_that_came_with_the_checkpoint_is_renewed(tmp_path):
    """Same shape, other meaning: without care the foreign head would be reused in silence."""
    folder = tiny_export.build(tmp_path / "classifier")
    path = tiny_run.write_recipe(tmp_path, folder, seed=7)
    for split in ("train", "validation", "test"):
        rows = [(text, {"pos": "a", "neg": "b"}[label]) for text, label in tiny_run.sentences(20, seed=1)] + [
            ("film", "c")
        ]
        tiny_run.write_csv(tmp_path / f"{split}.csv", ("text", "label"), rows)
    ready = preparation.prepare(load(path), Events())
    found = loaded(ready)
    stored = load_file(folder / "model.safetensors")
    assert stored["classifier.weight"].shape == found.model.classifier.weight.shape
    assert not torch.equal(stored["classifier.weight"], found.model.classifier.weight)
    assert torch.equal(stored["bert.pooler.dense.weight"], found.model.bert.pooler.dense.weight)
    assert found.head_swap.new.names == HEAD
    assert found.head_swap.dropped.names == HEAD


def test_keep_head_needs_the_same_labels(tmp_path):
    folder = tiny_export.build(tmp_path / "classifier")
    path = tiny_run.write_recipe(tmp_path, folder)
    path.write_text(path.read_text().replace("model:\n", "model:\n  keep_head: true\n"))
    ready = preparation.prepare(load(path), Events())
    with pytest.raises(ModelError, match=r"keep_head: the labels of .* are .*negative"):
        loaded(ready)


def test_keep_head_goes_on_with_the_same_head(tmp_path):
    folder = tiny_export.build(tmp_path / "classifier")
    path = tiny_run.write_recipe(tmp_path, folder)
    path.write_text(path.read_text().replace("model:\n", "model:\n  keep_head: true\n"))
    for split in ("train", "validation", "test"):
        rows = [(f"film {name}", name) for name in tiny_export.LABELS for _ in range(3)]
        tiny_run.write_csv(tmp_path / f"{split}.csv", ("text", "label"), rows)
    found = loaded(preparation.prepare(load(path), Events()))
    assert torch.equal(load_file(folder / "model.safetensors")["classifier.weight"], found.model.classifier.weight)
    assert found.head_swap.new.count == 0


def test_the_new_head_depends_on_the_seed_alone(tmp_path, tiny_checkpoint):
    weights = []
    for number, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(number)
        folder.mkdir()
        torch.rand(number + 1)
        weights.append(loaded(prepared(folder, tiny_checkpoint, seed=seed)).model.classifier.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_scratch_has_random_weights_everywhere_and_needs_none_on_disk(tmp_path, tiny_checkpoint):
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in tiny_checkpoint.iterdir():
        if path.suffix != ".safetensors":
            (bare / path.name).write_bytes(path.read_bytes())
    path = tiny_run.write_recipe(tmp_path, bare)
    path.write_text(path.read_text().replace("model:\n", "model:\n  init: scratch\n"))
    found = loaded(preparation.prepare(load(path), Events()))
    assert found.head_swap.reused.count == 0
    assert "bert.embeddings.word_embeddings.weight" in found.head_swap.new.names


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_stored_half_precision_is_trained_from_fp32_weights(tmp_path, tiny_checkpoint, dtype):
    half = copy(tiny_checkpoint, tmp_path / "half")
    change(half, lambda name, value: value.to(dtype))
    config = json.loads((half / "config.json").read_text())
    (half / "config.json").write_text(json.dumps(config | {"dtype": str(dtype).removeprefix("torch.")}))
    found = loaded(prepared(tmp_path, half))
    assert {value.dtype for value in found.model.parameters()} == {torch.float32}


def copy(source, target):
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def change(folder, function, drop=()):
    """Rewrite the weights of a checkpoint."""
    weights = {k: function(k, v) for k, v in load_file(folder / "model.safetensors").items() if k not in drop}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_a_hole_in_the_backbone_is_refused(tmp_path, tiny_checkpoint):
    broken = copy(tiny_checkpoint, tmp_path / "broken")
    change(broken, lambda _, value: value, drop=("encoder.layer.1.output.dense.weight",))
    with pytest.raises(ModelError, match=r"lacks 1 weights of the backbone .*encoder.layer.1.output.dense.weight"):
        loaded(prepared(tmp_path, broken))


def test_nan_in_the_weights_is_refused(tmp_path, tiny_checkpoint):
    broken = copy(tiny_checkpoint, tmp_path / "broken")
    change(broken, lambda name, value: value * float("nan") if name == "pooler.dense.bias" else value)
    with pytest.raises(ModelError, match=r"NaN or infinite numbers in bert.pooler.dense.bias"):
        loaded(prepared(tmp_path, broken))


def test_damaged_weights_are_refused(tmp_path, tiny_checkpoint):
    broken = copy(tiny_checkpoint, tmp_path / "broken")
    content = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="broken"):
        loaded(prepared(tmp_path, broken))


def test_evaluation_refuses_a_checkpoint_without_a_trained_head(tmp_path, tiny_checkpoint):
    from finetune.tasks.sequence import SequenceTask

    with pytest.raises(ModelError, match=r"is saved as BertModel, expected BertForSequenceClassification"):
        model.load_for_evaluation(Checkpoint("tiny", tiny_checkpoint), SequenceTask)
    folder = tiny_export.build(tmp_path / "classifier")
    change(folder, lambda _, value: value, drop=("classifier.weight",))
    with pytest.raises(ModelError, match=r"has no weights for classifier.weight: the head would be random"):
        model.load_for_evaluation(Checkpoint("tiny", folder), SequenceTask)


def test_export_is_what_a_reader_needs_and_nothing_of_this_machine(tmp_path, tiny_checkpoint):
    ready = prepared(tmp_path, tiny_checkpoint)
    target = tmp_path / "export"
    model.export(loaded(ready).model, ready.tokenizer, ready.task, target, base=None)
    names = {path.name for path in target.rglob("*")}
    assert names == {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"}
    config = json.loads((target / "config.json").read_text())
    assert config["id2label"] == {"0": "neg", "1": "pos"}
    assert config["problem_type"] == "single_label_classification"
    assert config["dtype"] == "float32"
    assert json.loads((target / "tokenizer_config.json").read_text())["model_max_length"] == 24
    for path in target.glob("*.json"):
        assert str(tmp_path) not in path.read_text()
        assert str(tiny_checkpoint) not in path.read_text()
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in target.iterdir())


def test_an_export_does_not_show_how_its_tokenizer_was_called_last(tmp_path, tiny_checkpoint):
    ready = prepared(tmp_path, tiny_checkpoint)
    net = loaded(ready).model
    for name, kwargs in (("a", {}), ("b", {"padding": "max_length", "truncation": True, "max_length": 9})):
        ready.tokenizer("good film", **kwargs)
        model.export(net, ready.tokenizer, ready.task, tmp_path / name, base=None)
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()


def test_rows_are_encoded_once_whatever_a_tokenizer_was_called_with(tmp_path, tiny_checkpoint):
    tokenizer = prepared(tmp_path, tiny_checkpoint).tokenizer
    key = pretrained.tokenizer_sha256(tokenizer)
    tokenizer("good film", padding="max_length", truncation=True, max_length=9)
    assert pretrained.tokenizer_sha256(tokenizer) == key


def test_placeholder_label_names_are_refused(tmp_path, tiny_checkpoint):
    path = tiny_run.write_recipe(tmp_path, tiny_checkpoint)
    for split in ("train", "validation", "test"):
        tiny_run.write_csv(
            tmp_path / f"{split}.csv", ("text", "label"), [("a film", "LABEL_0"), ("bad plot", "LABEL_1")]
        )
    with pytest.raises(ModelError, match="labels LABEL_0, LABEL_1: expected real names"):
        loaded(preparation.prepare(load(path), Events()))


def test_merged_export_equals_base_with_adapter(tmp_path, tiny_checkpoint):
    import peft
    from transformers import AutoModelForSequenceClassification, BertModel

    ready = prepared(tmp_path, tiny_checkpoint)
    found = loaded(ready)
    size = lora.adapter_parameters(found.model, LoraBlock(r=4), found.head_swap.new.names)
    adapted = lora.add_lora(found.model, found.head_swap, LoraBlock(r=4), seed=0)
    assert optim.trained_parameters(adapted) == size
    with torch.no_grad():
        for value in adapted.parameters():
            if value.requires_grad:
                value.copy_(torch.randn(value.shape) * 0.3)
    adapted.eval()
    batch = ready.task.collate(ready.features["train"], torch.arange(8).numpy(), ready.tokenizer)
    with torch.inference_mode():
        expected = adapted(**batch.inputs).logits
    model.export(adapted, ready.tokenizer, ready.task, tmp_path / "export", base="user/base")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export").eval()
    with torch.inference_mode():
        torch.testing.assert_close(merged(**batch.inputs).logits, expected, atol=1e-5, rtol=0)
    assert not torch.equal(
        merged.bert.encoder.layer[0].attention.self.query.weight,
        BertModel.from_pretrained(tiny_checkpoint).encoder.layer[0].attention.self.query.weight,
    )
    adapter = json.loads((tmp_path / "export" / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "user/base"
    assert sorted(p.name for p in (tmp_path / "export" / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    base = AutoModelForSequenceClassification.from_pretrained(tiny_checkpoint, num_labels=2)
    again = peft.PeftModel.from_pretrained(base, tmp_path / "export" / "adapter").eval()
    with torch.inference_mode():
        torch.testing.assert_close(again(**batch.inputs).logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_cheap_adapters_compute_what_peft_does_and_are_undone(dropout, tmp_path, tiny_checkpoint):
    found = loaded(prepared(tmp_path, tiny_checkpoint))
    adapted = lora.add_lora(found.model, found.head_swap, LoraBlock(r=2, dropout=dropout), seed=0).train()
    install_dropout(adapted)  # the same masks on both ways
    with torch.no_grad():
        for value in adapted.parameters():
            if value.requires_grad:
                value.copy_(torch.randn(value.shape) * 0.3)

    def outcome(dtype=None):
        adapted.zero_grad()
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is not None):
            logits = adapted(input_ids=torch.arange(4, 12).view(2, 4)).logits
        logits.float().square().sum().backward()
        return [logits.detach().float(), *(p.grad.clone() for p in adapted.parameters() if p.grad is not None)]

    expected = outcome()
    undo = lora.install_cheap_adapters(adapted)
    for ours, theirs in zip(outcome(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    narrow = outcome(torch.bfloat16)
    assert not torch.equal(narrow[0], expected[0])
    torch.testing.assert_close(narrow[0], expected[0], rtol=0.1, atol=0.1)
    undo()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(outcome(), expected, strict=True))


def test_lora_targets_that_name_nothing_are_refused(tmp_path, tiny_checkpoint):
    found = loaded(prepared(tmp_path, tiny_checkpoint))
    with pytest.raises(ModelError, match=r"model.lora.targets: no linear layer is named q_proj; there are .*query"):
        lora.add_lora(found.model, found.head_swap, LoraBlock(targets=["query", "q_proj"]), seed=0)


class TestPretrained:
    """Where a checkpoint comes from and what is refused before anything is loaded."""

    def refused(self, folder, checkpoint, match):
        with pytest.raises(ModelError, match=match) as caught:
            prepared(folder, checkpoint)
        assert caught.value.exit_code == 2

    def test_pickled_weights_are_refused_with_the_way_out(self, tmp_path, tiny_checkpoint):
        pickled = copy(tiny_checkpoint, tmp_path / "pickled")
        torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
        (pickled / "model.safetensors").unlink()
        self.refused(tmp_path, pickled, r"has no model.safetensors; pickled weights .* are refused; .*save_pretrained")

    def test_pickled_weights_are_not_the_way_out_where_safetensors_are_of_no_use(self, tmp_path, tiny_checkpoint):
        pickled = copy(tiny_checkpoint, tmp_path / "pickled")
        torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
        (pickled / "model.safetensors").rename(pickled / "model-of-another-name.safetensors")
        with pytest.raises(ModelError, match=r"model.checkpoint: .*pickled does not load: .* model.safetensors"):
            loaded(prepared(tmp_path, pickled))

    def test_neither_pickles_nor_code_are_fetched_from_a_repository(self):
        wanted = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors", "vocab.txt"]
        unwanted = ["pytorch_model.bin", "training_args.bin", "model.pt", "model.pkl", "modeling.py", "tf_model.h5"]
        assert list(filter_repo_objects([*wanted, *unwanted], allow_patterns=pretrained.PATTERNS)) == wanted

    def test_code_of_a_checkpoint_is_refused(self, tmp_path, tiny_checkpoint):
        coded = copy(tiny_checkpoint, tmp_path / "coded")
        config = json.loads((coded / "config.json").read_text())
        (coded / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
        (coded / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        self.refused(tmp_path, coded, "asks for trust_remote_code: code that comes with a checkpoint is never run")
        assert not (tmp_path / "ran").exists()

    def test_code_of_a_tokenizer_is_not_run_whatever_standard_input_says(self, tmp_path, tiny_checkpoint, monkeypatch):
        coded = copy(tiny_checkpoint, tmp_path / "coded")
        config = json.loads((coded / "tokenizer_config.json").read_text())
        config |= {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}
        (coded / "tokenizer_config.json").write_text(json.dumps(config))
        code = f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom transformers import PreTrainedTokenizerFast as Evil\n"
        (coded / "evil.py").write_text(code)
        monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))  # transformers asks, where nothing is said
        monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
        prepared(tmp_path, coded)
        assert not (tmp_path / "ran").exists()

    def test_a_folder_that_is_none(self, tmp_path):
        self.refused(tmp_path, "./nowhere", r"model.checkpoint: ./nowhere is not a folder with a config.json")

    def test_an_unknown_architecture(self, tmp_path, tiny_checkpoint):
        strange = copy(tiny_checkpoint, tmp_path / "strange")
        (strange / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
        self.refused(tmp_path, strange, "is of type 'no-such-model', which transformers .* cannot load")

    def test_an_architecture_without_such_a_head(self, tmp_path, tiny_checkpoint):
        vision = copy(tiny_checkpoint, tmp_path / "vision")
        (vision / "config.json").write_text(json.dumps({"model_type": "vit"}))
        self.refused(tmp_path, vision, "is of type 'vit', and transformers has no SequenceClassification head for it")

    def test_sha256_is_checked(self, tmp_path, tiny_checkpoint):
        path = tiny_run.write_recipe(tmp_path, tiny_checkpoint)
        path.write_text(path.read_text().replace("model:\n", f"model:\n  sha256: {'f' * 64}\n"))
        with pytest.raises(ModelError, match=r"model.sha256: model.safetensors of .* has sha256 .*, expected ffff"):
            preparation.prepare(load(path), Events())

    def test_a_tokenizer_of_another_model(self, tmp_path, tiny_checkpoint):
        small = tiny_run.save_encoder(tmp_path / "small", vocab_size=8)
        self.refused(tmp_path, small, "has ids up to 13, but the model has only 8 embeddings")

    def test_a_package_that_is_not_installed(self, tmp_path):
        self.refused(tmp_path, "package://no_such_package/model", "no package no_such_package is installed")

    @pytest.mark.parametrize("inside", ["../other", "linked"])
    def test_nothing_outside_a_package_is_read(self, tmp_path, tiny_checkpoint, monkeypatch, inside):
        (tmp_path / "a_package").mkdir()
        (tmp_path / "a_package" / "__init__.py").write_text("raise AssertionError('imported')")
        other = copy(tiny_checkpoint, tmp_path / "other")
        (tmp_path / "a_package" / "linked").symlink_to(other)
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(ModelError, match=r"with a config\.json inside the package"):
            pretrained.locate(f"package://a_package/{inside}")
        copy(tiny_checkpoint, tmp_path / "a_package" / "model")
        assert pretrained.locate("package://a_package/model").folder == tmp_path / "a_package" / "model"

    def test_max_length_is_bounded_by_the_positions(self, tiny_checkpoint):
        config = tiny_run.config()
        tokenizer = tiny_export.tokenizer()
        assert pretrained.longest_input(config, tokenizer, 24) == 24
        assert pretrained.longest_input(config, tokenizer, 500) == 32
        tokenizer.model_max_length = int(1e30)
        assert pretrained.longest_input(config, tokenizer, 500) == 32

    def test_roberta_loses_positions_to_its_padding_index(self):
        from transformers import RobertaConfig

        tokenizer = tiny_export.tokenizer()
        tokenizer.model_max_length = int(1e30)
        config = RobertaConfig(max_position_embeddings=514, pad_token_id=1)
        assert pretrained.longest_input(config, tokenizer, 1000) == 512

    def test_a_missing_pad_token_is_replaced_by_the_end_token(self, tmp_path, tiny_checkpoint):
        folder = copy(tiny_checkpoint, tmp_path / "nopad")
        words = tiny_export.tokenizer()
        words.pad_token = None
        words.eos_token = "[SEP]"
        words.save_pretrained(folder)
        found = pretrained.load_tokenizer(Checkpoint("x", folder), tiny_run.config())
        assert found.pad_token == "[SEP]"


def test_a_tokenizer_that_needs_sentencepiece_says_how_to_install_it(tmp_path, monkeypatch):
    def missing(*_, **__):
        raise ImportError("\nMarianTokenizer requires the SentencePiece library but it was not found.\nSee ...")

    monkeypatch.setattr(pretrained.transformers.AutoTokenizer, "from_pretrained", missing)
    with pytest.raises(ModelError) as caught:
        pretrained.load_tokenizer(Checkpoint("x", tmp_path), tiny_run.config())
    assert str(caught.value) == (
        "model.checkpoint: x has no tokenizer that loads (MarianTokenizer requires the SentencePiece library but it was"
        " not found.); install it: pip install sentencepiece"
    )
