"""Call a model as a stranger would: a program for a fresh process, run by path, that knows nothing of this package.

On stdin one JSON document:
    {"model": folder or Hub id, "revision": null, "task": "text-classification", "trust_remote_code": false,
     "device": "cpu", "cases": [{"inputs": ..., "kwargs": {...}}]}
On stdout one JSON line:
    {"outputs": [one per case], "dtype": "float32", "versions": {...}}, or
    {"error": {"stage": "load" | "call", "case": number or null, "type": ..., "message": ...}, "versions": {...}}
Whatever libraries print goes to stderr. No dtype is asked for: the weights are taken as they are stored.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

__all__: list[str] = []


def main() -> None:
    """Read the document, answer it, exit 0; exit 1 when the model cannot be loaded or called."""
    answer_to = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    document = json.load(sys.stdin)
    sys.modules["finetune"] = None  # type: ignore[assignment]  # a stranger does not have this package
    import torch
    import transformers

    versions = {"python": sys.version.split()[0], "torch": torch.__version__, "transformers": transformers.__version__}
    answer = _answer(document, transformers.pipeline) | {"versions": versions}
    json.dump(answer, answer_to, default=_plain)
    answer_to.write("\n")
    answer_to.flush()
    os._exit(int("error" in answer))  # threads that libraries left behind must not keep the process


def _answer(document: dict[str, Any], pipeline: Any) -> dict[str, Any]:
    stage, number = "load", None
    try:
        pipe = pipeline(
            document["task"],
            model=document["model"],
            revision=document["revision"],
            device=document["device"],
            trust_remote_code=document["trust_remote_code"],
        )
        stage, outputs = "call", []
        for number, case in enumerate(document["cases"]):  # noqa: B007
            outputs.append(pipe(case["inputs"], **case["kwargs"]))
    except Exception as error:  # the boundary of the process: every failure becomes an answer
        return {"error": {"stage": stage, "case": number, "type": type(error).__name__, "message": str(error)}}
    return {"outputs": outputs, "dtype": str(pipe.model.dtype).removeprefix("torch.")}


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy and torch as JSON knows them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"the pipeline returned a {type(value).__name__}, which JSON cannot hold")


if __name__ == "__main__":
    main()
