"""`noesis …`: thin doors for people and operators. Every command says what happened and exits with 0 only then."""

from __future__ import annotations

import io
import sys
from importlib import import_module

import click

from cli.failures import foreseen, told
from shared.errors import NoesisError, PermanentError

COMMANDS = {
    "up": "cli.platform",
    "down": "cli.platform",
    "status": "cli.platform",
    "tenants": "cli.tenants",
    "submit": "cli.submitting",
    "ask": "cli.asking",
    "runs": "cli.runs",
    "cancel": "cli.answers",
    "feedback": "cli.answers",
    "documents": "cli.documents",
    "web-sources": "cli.web_sources",
    "migrate": "cli.migrating",
    "seed": "cli.seeding",
    "dead-letters": "cli.dead_letters",
    "jobs": "cli.jobs",
    "tools": "cli.tools",
    "approvals": "cli.approvals",
    "cases": "cli.cases",
    "budgets": "cli.money",
    "costs": "cli.money",
    "masking": "cli.masking",
    "events": "cli.events",
    "search": "cli.searching",
    "eval": "cli.evaluating",
    "spaces": "cli.spaces",
    "indexes": "cli.indexes",
    "campaigns": "cli.campaigns",
}
"""Command to module. Imported when called: together they cost two seconds, and `noesis down` needs none of it."""


OWN_NAMES = {"eval": "evaluating"}
"""Commands whose function cannot have their name."""


class Commands(click.Group):
    """The group of all commands, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order in which people meet them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name."""
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        found: click.Command = getattr(import_module(module), OWN_NAMES.get(cmd_name, cmd_name.replace("-", "_")))
        return found


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="noesis2", prog_name="noesis")
def noesis() -> None:
    """noesis2: a company's documents become cited answers."""


def main() -> None:
    """Run the command line; an error of ours is one line, not a stack."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal of another encoding gets the answer, too
    try:
        _check_words(sys.argv[1:])
        # Outside its standalone mode click returns the status of `Exit` instead of raising it.
        sys.exit(noesis(standalone_mode=False) or 0)
    except click.Abort as abort:
        asked = abort.__cause__ is None  # else somebody interrupted what was being done
        if asked and not (sys.stdin and sys.stdin.isatty()):
            click.echo("\nNothing was done. Where nobody can be asked, --yes answers.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except PermanentError as error:
        click.echo(f"{error.message} {error.next_action}".strip(), err=True)
        sys.exit(1)
    except NoesisError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    except foreseen() as error:
        line = told(error)
        if line is None:
            raise
        click.echo(line, err=True)
        sys.exit(1)


def _check_words(words: list[str]) -> None:
    """Raises UsageError for words that are no text: no name of ours is, and the database takes none."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise click.UsageError("An argument is not UTF-8.") from None
