"""The command line: `arcompile COMMAND`. Every command is a function of a file in this folder.

Errors are one line, then details, then a hint, on stderr; a traceback only with --debug. Exit codes
are those of ArcError: 1 the input is at fault, 2 this machine cannot; 130 is Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from arcompile.cli import build, calibrate, draw, export, look, machine, profile, trust
from arcompile.cli.terminal import print_json
from arcompile.errors import MACHINE, THEIRS, ArcError

USAGE: Any = typer.BadParameter.__bases__[0]  # click's UsageError, whichever click typer brings
DETAILS = 12  # lines of an error's details that are shown without --debug
INTERRUPTED = 130

app = typer.Typer(
    help="Compile autoregressive image generators.",
    epilog="Example: arcompile build c2i_B_256.pt --decoder vq_ds16_c2i.pt -o engine",
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
)

COMMANDS: dict[str, tuple[Any, str]] = {
    "build": (build.build, "arcompile build c2i_B_256.pt --decoder vq_ds16_c2i.pt -o engine"),
    "calibrate": (calibrate.calibrate, "arcompile calibrate demo -o ranges.safetensors"),
    "generate": (draw.generate, "arcompile generate engine --label 207,88 --seed 1 -o dogs.png"),
    "show": (look.show, "arcompile show model.pt --after swiglu --diff"),
    "profile": (profile.profile, "arcompile profile engine --by line -o profile"),
    "bisect": (look.bisect, 'arcompile bisect model.pt --passes "swiglu" --good max-error=1e-4'),
    "list": (machine.list_, "arcompile list passes"),
    "doctor": (machine.doctor, "arcompile doctor --json"),
    "export": (export.export, "arcompile export --cpp-example engine my-app"),
    "sign": (trust.sign, "arcompile sign engine --key my.key"),
    "verify": (trust.verify, "arcompile verify engine --key my.pub"),
    "bench": (machine.bench, "arcompile bench --quick"),
}
for _name, (_run, _example) in COMMANDS.items():
    app.command(_name, epilog=f"Example: {_example}")(_run)


def _version(asked: bool) -> None:
    if asked:
        import arcompile

        print(f"arcompile {arcompile.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _start(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; anywhere on the line.")]
    = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True,
                                          help="Show the version and exit.")] = False,
) -> None:
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def main() -> None:
    """The entry point of the `arcompile` script and of `python -m arcompile`."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name may hold bytes that are no text
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))


def run(given: Sequence[str]) -> int:
    """One command; the exit code. Prints errors instead of raising them."""
    end = list(given).index("--") if "--" in given else len(given)
    debug, as_json = ("--debug" in given[:end], "--json" in given[:end])
    args = [a for i, a in enumerate(given) if i >= end or a != "--debug"]
    try:
        code = app(args, standalone_mode=False, prog_name="arcompile")
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:  # `arcompile show ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return THEIRS
    except Exception as e:
        if debug and not isinstance(e, USAGE):
            raise
        return _report(_explain(e), as_json, debug)
    if code == INTERRUPTED:
        print("interrupted", file=sys.stderr)
    return code or 0


def _explain(e: Exception) -> ArcError:
    """Any exception as an ArcError: what, details, hint, exit code."""
    if isinstance(e, ArcError):
        return e
    if isinstance(e, USAGE):
        return _usage(e)
    if isinstance(e, MemoryError):
        return ArcError("out of memory", code=MACHINE, hint="use fewer images, or a larger machine")
    if isinstance(e, OSError) and e.filename is not None:
        return ArcError(f"{e.filename}: {e.strerror}", hint="check the path and its permissions")
    text = (str(e).strip().splitlines() or [""])[0][:200]
    return ArcError(f"internal error: {type(e).__name__}: {text}",
                    hint="run again with --debug, and report what it prints")


def _usage(e: Any) -> ArcError:
    """What click says of a wrong command line."""
    what = e.format_message().rstrip(".")
    command = e.ctx.command_path if e.ctx else "arcompile"
    return ArcError(what[:1].lower() + what[1:], hint=f"{command} --help")


def _report(e: ArcError, as_json: bool, debug: bool) -> int:
    notes = [n for n in getattr(e, "__notes__", ()) if n != e.details and not n.startswith("hint:")]
    lines = [s for part in (e.details, *notes) for s in part.splitlines() if s.strip()]
    what = " ".join(e.what.split("\n"))
    if as_json:
        found = {"error": what, "hint": e.hint, "code": e.code, "details": lines}
        print_json(found)
        return e.code
    print(f"error: {what}", file=sys.stderr)
    short = lines if debug or len(lines) <= DETAILS else lines[: DETAILS - 1]
    for line in short:
        print(f"  {line}", file=sys.stderr)
    if len(short) < len(lines):
        print(f"  ... and {len(lines) - len(short)} more; --debug shows all", file=sys.stderr)
    if e.hint:
        print(f"hint: {e.hint}", file=sys.stderr)
    return e.code
