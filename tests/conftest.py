"""What all tests share: one thread, a cache of their own, tiny checkpoints."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; tests share the machine with each other

import pytest
import tiny_run


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """A BERT encoder of random weights, without a head, and its tokenizer."""
    return tiny_run.save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Nothing is read from or written to the user's cache."""
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
