"""The recipes that ship with the package: beside it in a checkout, inside it when installed from a wheel."""

from __future__ import annotations

import difflib
import shutil
from pathlib import Path

from finetune.errors import RecipeError

__all__ = ["copy", "find", "names", "summaries"]


def _root() -> Path:
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "recipes"


def names() -> list[str]:
    """`task/dataset-model`, sorted."""
    return sorted(path.relative_to(_root()).with_suffix("").as_posix() for path in _root().glob("*/*.yaml"))


def summaries() -> list[tuple[str, str]]:
    """Each recipe's name and the first comment of its file that is not for the editor."""
    found = []
    for name in names():
        comments = (
            line[1:].strip() for line in find(name).read_text(encoding="utf-8").splitlines() if line.startswith("#")
        )
        found.append(
            (name, next((text for text in comments if text and not text.startswith("yaml-language-server")), ""))
        )
    return found


def find(name: str) -> Path:
    """The file of a recipe. Raises RecipeError with the nearest name."""
    known = names()
    if name.removesuffix(".yaml") not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise RecipeError(f"no shipped recipe is named {name!r}{hint} (`finetune recipes list` prints all)")
    return _root() / f"{name.removesuffix('.yaml')}.yaml"


def copy(name: str, folder: Path) -> list[Path]:
    """Copy a recipe and the local files it names into `folder`; the copied files. Existing files are never replaced.
    Raises RecipeError.

    The recipe keeps its place beside its data: it lands in `folder`, data of its own folder too, data of a neighbour
    folder (`../quickstart/train.csv`) in the neighbour of `folder`.
    """
    from finetune.recipe import is_local, load

    source = find(name)
    recipe = load(source)
    given = recipe.data.path
    written = [given] if isinstance(given, str) else list(given.values())
    pairs = [(source, folder / source.name)]
    for text in [*written, recipe.model.checkpoint]:
        if is_local(text) and not text.startswith("package://"):
            path = recipe.locate(text)
            inner = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
            pairs += [
                (file, folder / Path(text) / file.relative_to(path)) if path.is_dir() else (file, folder / text)
                for file in inner
            ]
    taken = [str(target) for _, target in pairs if target.exists()]
    if taken:
        raise RecipeError(f"{', '.join(taken)}: exists already; copy into another folder")
    try:
        for origin, target in pairs:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(origin, target)
    except OSError as error:
        raise RecipeError(f"{folder} cannot be written ({error.strerror or error}); name another folder") from error
    return [target for _, target in pairs]
