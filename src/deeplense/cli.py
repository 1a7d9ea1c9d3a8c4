"""The command line: one sub-command a verb, nothing but wiring. A verb's function signature is its options."""

from __future__ import annotations

import importlib
import inspect
import keyword
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from deeplense.errors import UserError
from deeplense.interruption import Terminated, status, terminable


@dataclass(frozen=True)
class Verb:
    """How a function appears on the command line.

    Attributes:
        where: `module:function`, imported when the verb is used.
        positional: its positional arguments, "+" or "*" after the name for one or more, none or more.
        lists: options that take several values.
        skip: arguments of the function that the command line does not offer.
        allow: whether it makes worlds or networks, whose classes may be of the user's own.
    """

    where: str
    example: str
    positional: tuple[str, ...]
    lists: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    allow: bool = True

    def load(self) -> Callable[..., Any]:
        module, _, name = self.where.partition(":")
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return function


VERBS = {
    "simulate": Verb(
        "deeplense.data.generate:simulate",
        "deeplense simulate quickstart --out runs/data --splits train=900,val=300,test=300 --workers 2",
        ("recipe", "overrides*"),
    ),
    "import": Verb(
        "deeplense.data.importing:import_dataset",
        "deeplense import lenses.zip --out runs/lenses --splits train=0.8,test=0.2",
        ("source",),
        allow=False,
    ),
    "export-dataset": Verb(
        "deeplense.data.exporting:export_dataset",
        "deeplense export-dataset runs/data --out runs/fits --layout fits",
        ("dataset",),
        allow=False,
    ),
    "info": Verb("deeplense.evaluation.info:info", "deeplense info runs/data --verify", ("source",)),
    "show": Verb(
        "deeplense.evaluation.show:show",
        "deeplense show runs/data --id test-00000002 --out lens.png",
        ("source",),
    ),
    "audit": Verb(
        "deeplense.evaluation.audit:audit", "deeplense audit runs/data --out runs/audit", ("dataset",), allow=False
    ),
    "train": Verb(
        "deeplense.training.fit:train",
        "deeplense train quickstart --data runs/data --out runs/first training.lr=0.002",
        ("recipe", "overrides*"),
        skip=("on_epoch",),
    ),
    "tune": Verb(
        "deeplense.tuning.study:tune",
        "deeplense tune quickstart --data runs/data --out runs/study --trials 12",
        ("recipe", "overrides*"),
    ),
    "leaderboard": Verb(
        "deeplense.leaderboard:leaderboard",
        "deeplense leaderboard board.yaml --out runs/board",
        ("board",),
    ),
    "evaluate": Verb(
        "deeplense.evaluation.report:evaluate",
        "deeplense evaluate runs/first/bundle.safetensors --data runs/data --out runs/report",
        ("bundle",),
        lists=("against",),
    ),
    "predict": Verb(
        "deeplense.inference.predict:predict",
        "deeplense predict runs/first/bundle.safetensors images/ more.zip --out table.csv",
        ("bundle", "inputs+"),
    ),
    "export": Verb(
        "deeplense.inference.export:export",
        "deeplense export runs/first/bundle.safetensors --out model.onnx --int8 --data runs/data",
        ("bundle",),
    ),
    "benchmark": Verb("deeplense.benchmark:benchmark", "deeplense benchmark simulate", ("verb?",)),
}


@terminable()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits 0, 2 on bad input (one line says what), 130 after Ctrl-C, 143 after SIGTERM."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(_overview())
        elif arguments[0] == "--version":
            from importlib import metadata

            print(f"deeplense {metadata.version('deeplense')}")
        else:
            _run(arguments)
    except UserError as error:
        _fail(str(error))
    except ArgumentError as error:
        _fail(" ".join(str(error).split()) + f" (deeplense {arguments[0]} --help shows how)")
    except KeyboardInterrupt as stop:
        if isinstance(stop, Terminated):  # who presses Ctrl-C knows; a log should say
            how = " with --resume" if arguments[:1] == ["train"] else ""
            sys.stdout.flush()
            print(f"stopped by SIGTERM; the same command{how} goes on, or starts again", file=sys.stderr)
        sys.exit(status(stop))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        # a full disk, a folder that cannot be written: nothing that a traceback would explain
        _fail(str(error))


def _run(arguments: list[str]) -> None:
    from deeplense.allow import allowed
    from deeplense.config import lookup

    name, rest = arguments[0], arguments[1:]
    verb: Verb = lookup(VERBS, name, "verb")
    function = verb.load()
    flags = [p.name for p in inspect.signature(function).parameters.values() if p.default is False]
    parser = _parser(name, verb, function, flags)
    values = vars(
        parser.parse_args(_ordered([_underscored(word) for word in rest], flags, "overrides*" in verb.positional))
    )
    with allowed(*(values.pop("allow", None) or ())):
        function(**{k: v for k, v in values.items() if k in _names(parser)})


def _parser(name: str, verb: Verb, function: Callable[..., Any], flags: list[str]) -> ArgumentParser:
    doc = (function.__doc__ or "").strip().splitlines()
    parser = _Parser(
        prog=f"deeplense {name}",
        description=doc[0] if doc else "",
        epilog=f"example: {verb.example}",
        exit_on_error=False,
    )
    for argument in verb.positional:
        bare = argument.rstrip("+*?")
        many: dict[str, Any] = {"nargs": argument[-1]} if argument != bare else {}
        many |= {"default": None} if argument.endswith("?") else {}
        kind = {"overrides": "key.sub=value, settings of the recipe"}.get(bare, bare)
        parser.add_argument(bare, help=kind, **many)
    for option in verb.lists:
        parser.add_argument(f"--{option}", nargs="+", default=[])
    for flag in flags:
        parser.add_argument(f"--{flag}", action="store_true")
    if verb.allow:
        parser.add_argument(
            "--allow",
            action="append",
            metavar="MODULE",
            help="a module of yours whose classes a recipe may name; may be given several times",
        )
    known: set[str | int] = {a.rstrip("+*?") for a in verb.positional}
    known.update(verb.lists, verb.skip, flags)
    parser.add_function_arguments(function, skip=known, as_group=False)
    return parser


class _Parser(ArgumentParser):
    """Options are written with dashes, arguments of functions with underscores."""

    def format_help(self, *arguments: Any) -> str:
        return re.sub(r"--\w+", lambda match: match[0].rstrip("_").replace("_", "-"), super().format_help(*arguments))


def _underscored(word: str) -> str:
    name, equals, value = word.partition("=")
    if not name.startswith("--") or len(name) == 2:
        return word
    bare = name[2:].replace("-", "_")
    # an argument of a function cannot be called `class`
    return f"--{bare}{'_' * keyword.iskeyword(bare)}{equals}{value}"


def _ordered(words: list[str], flags: list[str], overrides: bool) -> list[str]:
    """Settings may stand anywhere; the parser wants positional arguments together, so they go first."""
    if not overrides:
        return words
    bare = {f"--{flag}" for flag in flags}

    def is_value(k: int) -> bool:
        before = words[k - 1] if k else ""
        return before.startswith("--") and "=" not in before and before not in bare

    free = [k for k, word in enumerate(words) if not word.startswith("-") and not is_value(k)]
    # the recipe, which is no setting, comes before them
    free.sort(key=lambda k: bool(re.match(r"[a-z_]\w*(\.\w+)*=", words[k])))
    return [*(words[k] for k in free), *(word for k, word in enumerate(words) if k not in free)]


def _names(parser: ArgumentParser) -> set[str]:
    return {action.dest for action in parser._actions} - {"help"}


def _overview() -> str:
    lines = ["deeplense: simulate strong lenses, learn their dark matter, report it honestly", ""]
    lines += [f"  {verb.example}" for verb in VERBS.values()]
    return "\n".join([*lines, "", "deeplense VERB --help explains a verb."])


def _fail(message: str) -> None:
    sys.stdout.flush()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
