"""`noesis …`: thin doors for people and operators. Every command says what happened and exits with 0 only then."""

from __future__ import annotations

import sys

import click

from cli.asking import ask
from cli.dead_letters import dead_letters
from cli.documents import documents
from cli.migrating import migrate
from cli.platform import down, status, up
from cli.seeding import seed
from cli.submitting import submit
from cli.tenants import tenants
from shared.errors import NoesisError, PermanentError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="noesis2", prog_name="noesis")
def noesis() -> None:
    """noesis2: a company's documents become cited answers."""


for command in (up, down, status, tenants, submit, ask, documents, migrate, seed, dead_letters):
    noesis.add_command(command)


def main() -> None:
    """Run the command line; an error of ours is one line, not a stack."""
    try:
        noesis(standalone_mode=False)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.Abort:
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
