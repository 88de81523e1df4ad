"""The entry point: messages and exit codes of all commands.

Exit codes: 0 done; 1 a gate or check failed; 2 an invalid option, suite, device or dataset; 3 some trials failed; 4
nothing was measured; 130 interrupted; 70 (EX_SOFTWARE in sysexits.h) an internal error of optbench.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Sequence
from typing import Any

import typer

from optbench.cli import completion, standard_streams
from optbench.cli.app import app
from optbench.errors import OptbenchError, UsageError, escaped, hint
from optbench.paths import is_utf8

INTERRUPTED = 130
INTERNAL_ERROR = 70

# From 0.22 on, Typer contains a copy of click instead of importing it, so click's base class of usage errors is
# found through an exception that Typer exports.
_ClickException: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    standard_streams.open_missing()
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal's encoding lacks, such as an arrow, must not abort a run.
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        if wrong := [word for word in given if not is_utf8(word)]:
            raise UsageError(f"'{wrong[0]}': expected text in UTF-8, got other bytes")
        with completion.words_of_bash():
            code: Any = app(given or ["--help"], prog_name="optbench", standalone_mode=False)
    except OptbenchError as error:
        code = _say(error, str(error), error.exit_code, debug=debug)
    except _ClickException as error:
        code = _say(error, _misuse(error, given), 2, debug=debug)
    except (typer.Abort, KeyboardInterrupt) as error:
        code = _say(error, "interrupted", INTERRUPTED, debug=debug)
    except SystemExit as error:
        # If the reader of a pipe has closed it, Typer and rich exit with 1, which would mean a failed gate here.
        if isinstance(error.__context__, BrokenPipeError):
            code = _reader_gone()
        elif error.code and {"--install-completion", "--show-completion"} & set(given):
            code = 2  # an unknown shell, which Typer has reported
        else:
            raise
    except BrokenPipeError:
        code = _reader_gone()
    except Exception as error:
        # Typer writes the help and the version itself, so an OSError may come from standard output.
        undelivered = standard_streams.undelivered(sys.stdout) if isinstance(error, OSError) else None
        if undelivered is not None:
            code = _say(error, f"standard output: cannot write: {undelivered.strerror}", 2, debug=debug)
        else:
            message = f"{type(error).__name__}: {error}".splitlines()[0]
            code = _say(error, f"internal error: {message}; --debug shows the traceback", INTERNAL_ERROR, debug=debug)
    standard_streams.undelivered(sys.stderr)
    return code if isinstance(code, int) else 0


def _misuse(error: Any, given: Sequence[str]) -> str:
    """Describe a usage error found by Typer, in the style of optbench's messages. given: all arguments."""
    context = error.ctx
    command = context.command_path if context else _command_of(given)
    message = error.format_message().rstrip(".")
    place = command.removeprefix("optbench ")
    if hasattr(error, "possibilities"):
        known = context.command.get_params(context) if context else []
        options = [option for parameter in known for option in parameter.opts]
        message = f"unknown option '{error.option_name}'{hint(error.option_name, options)}"
    elif hasattr(error, "option_name"):
        takes_none = message.endswith("does not take a value")
        message = f"{error.option_name}: expected {'no value, got one' if takes_none else 'a value, got none'}"
    elif found := re.match(r"No such command (['\"])(.*?)\1(?:\.|$)", message):
        message = f"unknown command '{found[2]}'{hint(found[2], context.command.commands if context else ())}"
    elif found := re.match(r"Got unexpected extra argument\S* \((.*)\)$", message, re.DOTALL):
        message = f"{place}: expected no more arguments, got {found[1]}"
    elif message.startswith("Missing") and error.param is not None:
        given = error.param.metavar or error.param.name
        what = f"{error.param.opts[0]} {given}" if error.param.param_type_name == "option" else given
        message = f"{place}: expected {what}, got none"
    return escaped(f"{message} (see {command} --help)")


def _command_of(given: Sequence[str]) -> str:
    """Return the command that arguments belong to, e.g. `optbench run`; Typer does not name it in every error."""
    group: Any = typer.main.get_command(app)
    first = next((word for word in given if word != "--debug"), "")
    return f"optbench {first}" if first in group.commands else "optbench"


def _say(error: BaseException, message: str, code: int, *, debug: bool) -> int:
    with contextlib.suppress(OSError):
        if debug:
            import traceback

            traceback.print_exception(error, file=sys.stderr)
        for line in message.split("\n"):
            sys.stderr.write(f"optbench: {escaped(line)}\n")
    return code


def _reader_gone() -> int:
    standard_streams.discard(sys.stdout)
    return 0
