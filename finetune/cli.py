"""The command line: the only module that prints or exits."""

from __future__ import annotations

import gc
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, cast

import typer

from finetune.errors import FinetuneError, RecipeError, StorageError
from finetune.signals import stop_requests

if TYPE_CHECKING:
    from finetune.recipe import Recipe
    from finetune.record import RunRecord

__all__ = ["main"]

app = typer.Typer(
    name="finetune",
    help="Fine-tune a transformer from one recipe, evaluate it, publish it for transformers.pipeline.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
recipes_app = typer.Typer(help="The recipes that ship with this package.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes")

EXAMPLE = "\b\nExample: "  # \b: no line of the paragraph is wrapped

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file (YAML).")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]…", help="Keys of the recipe to replace, in dotted form.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output, and nothing else.")]


def main() -> None:
    """Run the command line and end the process with the exit code of `finetune.errors`."""
    _settle_environment()
    try:
        app(standalone_mode=False)
    except FinetuneError as error:
        _complain(error)
        sys.exit(error.exit_code)
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except typer.Abort:
        sys.exit(130)
    except Exception as error:
        if _usage_error(error):
            sys.exit(2)
        raise


def _settle_environment() -> None:
    """Before any library reads it: no telemetry, no conversion service, no warnings meant for developers.

    Threads of GNU OpenMP that wait for each other spin a tenth as often as by its default before they sleep: on a
    machine with other work the one they wait for may have no core, and a step then takes several times as long.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    for name, value in (
        ("DISABLE_SAFETENSORS_CONVERSION", "1"),
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
        ("TOKENIZERS_PARALLELISM", "true"),
        ("TRANSFORMERS_VERBOSITY", "error"),
    ):
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


@contextmanager
def _importing() -> Iterator[None]:
    """Import without Python's garbage collector: it finds nothing in modules, and takes a quarter of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _usage_error(error: Exception) -> bool:
    """Print a wrong call of the command line as typer does; False for any other exception."""
    show = getattr(error, "show", None)
    if show is None or not hasattr(error, "exit_code"):
        return False
    show()
    return True


def _complain(error: FinetuneError) -> None:
    rank = os.environ.get("RANK", "0")
    prefix = "" if rank == "0" else f"[process {rank}] "
    print(f"{prefix}{error}", file=sys.stderr)


# -------------------------------------------------------------------------------------------- commands


@app.command(epilog=EXAMPLE + "finetune check recipes/quickstart/quickstart.yaml train.epochs=1")
def check(recipe: RecipePath, overrides: Overrides = None, quiet: Quiet = False, as_json: AsJson = False) -> None:
    """Find what can be found wrong before training. Audits the rows, too; trains nothing."""
    from finetune.recipe import load

    loaded = load(recipe, overrides or [])
    with _importing():
        from finetune import checking

    with _listening(quiet or as_json) as events:
        checked = checking.check(loaded, events)
    if as_json:
        print(checked.audit.model_dump_json(indent=2))
    elif not quiet:
        print(checked.report)


@app.command(epilog=EXAMPLE + "finetune train recipes/quickstart/quickstart.yaml train.epochs=1")
def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    resume: Annotated[
        str, typer.Option(help="auto: continue what the output folder holds; never: refuse it.")
    ] = "auto",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune, evaluate, export, push. Pushes where hub.repo_id is set; continues a stopped run."""
    from finetune.recipe import load

    loaded = load(recipe, overrides or [])
    if resume not in ("auto", "never"):
        raise RecipeError(f"--resume: expected auto or never, found {resume!r}")
    with stop_requests() as stop, stop.at_once(), _importing():
        from finetune import run

    with _listening(quiet or as_json) as events:
        record = run.train(loaded, resume="never" if resume == "never" else "auto", events=events)
    if os.environ.get("RANK", "0") == "0":
        _show(record, quiet, as_json, _after_training(loaded, record))


@app.command(
    epilog=EXAMPLE + "finetune evaluate recipes/quickstart/quickstart.yaml --checkpoint runs/quickstart/export"
)
def evaluate(
    recipe: RecipePath,
    overrides: Overrides = None,
    checkpoint: Annotated[list[str] | None, typer.Option(help="A folder or Hub id; may be repeated.")] = None,
    split: Annotated[str | None, typer.Option(help="train, validation or test; else test where there is one.")] = None,
    labels: Annotated[str, typer.Option(help="old=new,…: which label of the checkpoint is which of the data.")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the record there as well.")] = None,
    quiet: Quiet = False,
) -> None:
    """Evaluate existing checkpoints on the recipe's data. Needs no train block.

    Also measured: latency at batch 1 over at most 50 rows and about 10 s, rows per second, memory, size, energy.
    """
    from finetune.recipe import load

    loaded = load(recipe, overrides or [])
    if not checkpoint:
        raise RecipeError("--checkpoint: missing; give a folder or a Hub id, for example runs/quickstart/export")
    renamed = _pairs(labels)
    if json_file is not None:
        _require_place(json_file)
    with _importing():
        from finetune import assessment

    records, problems = [], []
    with _listening(quiet) as events:
        for name in dict.fromkeys(checkpoint):
            try:
                records.append(assessment.evaluate(loaded, name, split=split, labels=renamed, events=events))
            except FinetuneError as error:
                problems.append(error)
    if json_file is not None and records and os.environ.get("RANK", "0") == "0":
        content = [record.model_dump(mode="json") for record in records]
        json_file.write_text(json.dumps(content if len(content) > 1 else content[0], indent=2) + "\n", encoding="utf-8")
    if not quiet:
        from finetune import tables

        tables.show_evaluations(records)
    if problems:
        raise type(problems[0])("\n".join(map(str, problems)))


def _reader(path: str) -> TextIO:
    """Bytes that are no UTF-8 come through, so that the line they stand on can be named."""
    if path == "-":
        cast(TextIOWrapper, sys.stdin).reconfigure(encoding="utf-8-sig", errors="surrogateescape")
        return sys.stdin
    try:
        return open(path, encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise RecipeError(
            f"--input: {path} cannot be read ({error.strerror}); give a file of JSON lines, or - for standard input"
        ) from error


@contextmanager
def _writing(path: str) -> Iterator[Callable[[str], None]]:
    """A function that writes to a file, which is whole in the end, or as it was: it may be the input."""
    from finetune.record import whole_file

    given = Path(path)
    special = given.exists() and not given.is_file()  # /dev/null, a pipe
    with ExitStack() as stack:
        try:
            opened = open(path, "w", encoding="utf-8") if special else whole_file(given.resolve())  # noqa: SIM115
            file = stack.enter_context(opened)
        except OSError as error:
            raise RecipeError(f"--output: {path} cannot be written ({error.strerror}); name another file") from error
        yield lambda text: _on_disk(path, lambda: file.write(text))
        _on_disk(path, stack.close)


def _on_disk(path: str, step: Callable[[], object]) -> None:
    try:
        step()
    except OSError as error:
        raise StorageError(f"--output: writing {path} failed ({error.strerror}); free some space") from error


@contextmanager
def _printing() -> Iterator[Callable[[str], None]]:
    """A function that writes to standard output, whose reader may have enough before the end."""
    try:
        yield lambda text: cast(None, sys.stdout.write(text))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end


def _require_place(path: Path) -> None:
    """A record is written last: whether it can be is asked first."""
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise RecipeError(f"--json: {path} cannot be written; name a file in a folder that exists and is yours")


def _pairs(text: str) -> dict[str, str]:
    pairs = [item.partition("=") for item in text.split(",") if item]
    if any(not sign for _, sign, _ in pairs):
        raise RecipeError(f"--labels: expected old=new,…, found {text!r}")
    return {old.strip(): new.strip() for old, _, new in pairs}


@app.command(epilog=EXAMPLE + 'echo \'{"text": "Where is my parcel?"}\' | finetune predict runs/quickstart/export')
def predict(
    model: Annotated[str, typer.Argument(metavar="DIR_OR_ID", help="A folder or a Hub id.")],
    input_file: Annotated[
        str, typer.Option("--input", help="JSON lines with roles as keys; - is standard input.")
    ] = "-",
    output_file: Annotated[str, typer.Option("--output", help="JSON lines; - is standard output.")] = "-",
) -> None:
    """Read JSON lines, write them with a prediction. It comes from the pipeline that the model page names."""
    with _importing():
        from finetune import prediction

    with _reader(input_file) as source, _printing() if output_file == "-" else _writing(output_file) as write:
        for line in prediction.predict_lines(model, source):
            write(json.dumps(line, ensure_ascii=False) + "\n")


@app.command(epilog=EXAMPLE + "finetune push runs/quickstart --repo-id me/quickstart --private")
def push(
    run_dir: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    repo_id: Annotated[str | None, typer.Option(help="NAMESPACE/NAME; else that of the recipe.")] = None,
    private: Annotated[bool | None, typer.Option("--private/--public", help="Else as the recipe says.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Push as a pull request.")] = False,
    quiet: Quiet = False,
) -> None:
    """Verify the export in a fresh process, then upload it. Can be repeated."""
    with _importing():
        from finetune import run

    with _listening(quiet) as events:
        record = run.push(run_dir, repo_id=repo_id, private=private, create_pr=create_pr, events=events)
    if not quiet and record.published is not None:
        print(f"published: {record.published.url} (commit {record.published.commit[:12]})")


@app.command(
    epilog=EXAMPLE + "finetune compare runs/full runs/lora\nseeds:   finetune compare 'runs/full-*' 'runs/lora-*'"
)
def compare(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="A run, a folder that `finetune evaluate` wrote, or a file of JSON lines with id, gold and prediction"
            " from any framework. Several runs with different seeds: separated by commas, or a quoted glob.",
        ),
    ],
    b: Annotated[str, typer.Argument(metavar="B", help="The same, on the same rows.")],
    split: Annotated[str | None, typer.Option(help="train, validation or test; else the first both have.")] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="The metric that decides; may be repeated, the first decides.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="single, multi, regression, entities, tags, answers or texts; else inferred.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell whether two models differ on the same rows. Difference, interval, paired test, rows that changed."""
    from finetune import comparison

    found = comparison.compare(a, b, split=split, metrics=metric or (), kind=kind)
    if as_json:
        print(found.model_dump_json(indent=2))
        return
    from finetune import tables

    tables.show_comparison(found)


@app.command(epilog=EXAMPLE + "finetune schema > recipe.schema.json")
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""
    from finetune.recipe import schema as recipe_schema

    print(json.dumps(recipe_schema(), indent=2))


@recipes_app.command("list", epilog=EXAMPLE + "finetune recipes list")
def recipes_list() -> None:
    """List the shipped recipes."""
    from finetune import shipped

    for name, summary in shipped.summaries():
        print(f"{name:45} {summary}")


@recipes_app.command("show", epilog=EXAMPLE + "finetune recipes show quickstart/quickstart")
def recipes_show(name: Annotated[str, typer.Argument(help="As `recipes list` prints it.")]) -> None:
    """Print one recipe."""
    from finetune import shipped

    print(shipped.find(name).read_text(encoding="utf-8"), end="")


@recipes_app.command("copy", epilog=EXAMPLE + "finetune recipes copy quickstart/quickstart my-recipes")
def recipes_copy(
    name: Annotated[str, typer.Argument(help="As `recipes list` prints it.")],
    dest: Annotated[Path, typer.Argument(help="A folder; made when missing.")],
) -> None:
    """Copy one recipe and its data into a folder of your own."""
    from finetune import shipped

    for path in shipped.copy(name, dest):
        print(path)


# -------------------------------------------------------------------------------------------- printing


def _listening(quiet: bool) -> Any:
    """A context that gives the Events a command reports to: bars on a terminal, plain lines elsewhere, or nothing."""
    from finetune import console

    return console.silent() if quiet or os.environ.get("RANK", "0") != "0" else console.reporting()


def _show(record: RunRecord, quiet: bool, as_json: bool, after: Callable[[], Sequence[str]]) -> None:
    if as_json:
        print(record.model_dump_json(indent=2))
    elif not quiet:
        from finetune import tables

        tables.show_run(record)
        for line in after():
            print(line)


def _after_training(recipe: Recipe, record: RunRecord) -> Callable[[], Sequence[str]]:
    """Where the model is and how to call it."""

    def lines() -> list[str]:
        model = record.published.repo_id if record.published else f"{recipe.output}/export"
        assert record.model is not None
        return ["", f"model: {model}", "", record.model.snippet.replace("{model}", model)]

    return lines
