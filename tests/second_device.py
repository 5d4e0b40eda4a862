"""A device that is not the CPU, on a machine that has no other: its tensors hold one of the CPU, and mix with none.

What a GPU refuses is refused: an operation on tensors of both, numpy on its tensors. Where the host would wait for a
GPU is noted. The arithmetic is the CPU's. Source: torch.utils.backend_registration, and torch's tensor subclasses.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

KIND = "second"
KERNELS = "PrivateUse1"  # torch's word for a device that it does not know
waits: list[str] = []  # the places where the host waited for the device


class There(torch.Tensor):
    """A tensor of the device."""

    @staticmethod
    def __new__(cls, inner):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, inner.size(), **layout, device=KIND)

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"There({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, function, kinds, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _Dispatch(TorchDispatchMode):
    """So that tensors can be made on the device, too."""

    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


def _run(function, args, kwargs):
    name = function.overloadpacket.__name__
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, There)]
    if name == "copy_":
        return _copy(*args, **kwargs)
    if name == "_to_copy":
        return _moved(function, args[0], **kwargs)
    if name == "_local_scalar_dense" and there:
        _note()
    here = [x for x in tensors if not isinstance(x, There) and x.dim() > 0]
    if there and here and name != "index":  # a GPU's tensors can be indexed with those of the CPU
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, found {[x.shape for x in here]}")
    made = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == KIND
    if made:
        kwargs = {name: value for name, value in kwargs.items() if name not in ("device", "pin_memory")}
    found = function(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if not there and not made:
        return found
    known = {id(x.inner): x for x in there}  # what works in place gives its argument back
    return tree_map(lambda x: known.get(id(x), There(x)) if isinstance(x, torch.Tensor) else x, found)


def _inner(value):
    return value.inner if isinstance(value, There) else value


def _copy(target, source, non_blocking=False):
    if isinstance(source, There) != isinstance(target, There) and not non_blocking and source.numel():
        _note()
    _inner(target).copy_(_inner(source))
    return target


def _moved(function, tensor, device=None, pin_memory=None, non_blocking=False, **kwargs):
    found, was_there = function(_inner(tensor), **kwargs), isinstance(tensor, There)
    goes_there = was_there if device is None else torch.device(device).type == KIND
    if was_there != goes_there and not non_blocking:
        _note()
    return There(found) if goes_there else found


def _note():
    waits.append("".join(traceback.format_list(traceback.extract_stack()[-12:-3])))


def _register():
    """Make torch know the device, for the rest of this process."""
    module = backend_registration._DummyBackendModule()
    module.get_rng_state = lambda *_: torch.zeros(1, dtype=torch.uint8)  # the CPU's generator draws for it, too
    module.set_rng_state = lambda *_: None
    backend_registration._setup_privateuseone_for_python_backend(KIND, module)
    library = torch.library.Library("aten", "IMPL")
    library.impl("empty_strided", _empty, KERNELS)
    library.impl("_copy_from", lambda source, target, *rest: _copy(target, source, *rest), KERNELS)
    return library


def _empty(size, stride, dtype=None, **_):
    return There(torch.empty_strided(size, stride, dtype=dtype))


def use(stop_at=None):
    """Let this process, which is to become `finetune train RECIPE`, train there, and stop it after step `stop_at`.

    RECIPE.waits gets a line for each step: a JSON list of the places where the host waited for the device within it.
    """
    from finetune import loop, run

    run.library = _register()  # as long as it lives
    # A tensor of another kind can neither be put into a parameter nor be made in inference mode.
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch.inference_mode = torch.no_grad
    torch.autograd.set_multithreading_enabled(False)
    join, step = run._join_processes, loop._optimizer_step

    def joined():
        state = join()
        state.device = torch.device(KIND, 0)
        return state

    def stepped(fit, rows):
        assert all(parameter.device.type == KIND for parameter in fit.model.parameters())
        waits.clear()
        loss = step(fit, rows)
        with open(f"{sys.argv[2]}.waits", "a", encoding="utf-8") as file:
            file.write(json.dumps(waits) + "\n")
        if fit.progress.step + 1 == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    run._join_processes, loop._optimizer_step = joined, stepped
    _Dispatch().__enter__()
