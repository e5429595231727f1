"""One clear message and the right exit code, whatever goes wrong; never a traceback for what a user can act on."""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperCommand

from laocoon.core.errors import InputError, LaocoonError, UnsafeFile
from laocoon.files.wording import printable

USAGE = 2
FINDINGS = 1
INTERRUPTED = 130


class Command(TyperCommand):
    """A command whose LaocoonErrors become one line on standard error."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UnsafeFile as error:
            complain(error)
            raise typer.Exit(FINDINGS) from None
        except LaocoonError as error:
            complain(error)
            raise typer.Exit(USAGE) from None
        except BrokenPipeError:  # the reader of our output went away
            sys.stderr.close()
            raise typer.Exit(USAGE) from None
        except OSError as error:
            complain(
                InputError(f"{error.filename or 'a file'}: {error.strerror or error}.", "Check it, and the space left.")
            )
            raise typer.Exit(USAGE) from None
        except MemoryError:
            complain(
                InputError("there is not enough memory for this.", "Use fewer samples per class, or a smaller model.")
            )
            raise typer.Exit(USAGE) from None


def complain(error: LaocoonError) -> None:
    typer.echo(f"error: {printable(error, 1500)}", err=True)


def note(text: str) -> None:
    typer.echo(f"note: {printable(text, 600)}", err=True)
