"""The command `laocoon`: one file per verb. Heavy imports wait until a verb needs them."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from laocoon import __version__
from laocoon.cli.certify import certify
from laocoon.cli.demo import demo
from laocoon.cli.doctor import doctor
from laocoon.cli.errors import Command
from laocoon.cli.guard import app as guard
from laocoon.cli.lab import app as lab
from laocoon.cli.repair import repair
from laocoon.cli.scan import scan
from laocoon.cli.sift import sift
from laocoon.cli.trace import trace
from laocoon.cli.train import train

app = typer.Typer(
    name="laocoon",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Find backdoors in neural networks that you did not train."""
    for stream in (sys.stdout, sys.stderr):  # names from files may hold what the terminal cannot show
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


app.command("scan", cls=Command)(scan)
app.command("sift", cls=Command)(sift)
app.command("trace", cls=Command)(trace)
app.command("repair", cls=Command)(repair)
app.command("train", cls=Command)(train)
app.command("certify", cls=Command)(certify)
app.command("doctor", cls=Command)(doctor)
app.command("demo", cls=Command)(demo)
app.add_typer(guard, name="guard")
app.add_typer(lab, name="lab")
