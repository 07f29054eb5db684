"""The account PostgreSQL runs under when we are root, because PostgreSQL refuses to run as root itself."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import NoesisError

PREFERRED = "noesis"
FALLBACKS = ("postgres", "nobody")

# Read and search past directory permissions, nothing else: no writing, no changing of owners.
CAPABILITY = "dac_read_search"


class AccountError(NoesisError):
    """No account can be found or created that PostgreSQL could run under, or it cannot reach its files."""


@dataclass(frozen=True)
class Account:
    """Who a PostgreSQL process runs as: ourselves (`name` is None), or as root another user.

    `reaches_through` says that the user may not walk the parent folders (a clone under /root) and therefore gets
    CAP_DAC_READ_SEARCH as an ambient capability, so that nobody's permissions have to be loosened.
    """

    name: str | None
    uid: int
    gid: int
    reaches_through: bool = False

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The command line that runs `arguments` under this account, from root or as ourselves."""
        if self.name is None:
            return list(arguments)
        prefix = [_setpriv(), f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups"]
        if self.reaches_through:
            # PostgreSQL looks for itself with access(2), which clears the capabilities of a non-root user unless
            # the securebit says otherwise ("could not locate my own executable path").
            prefix += [f"--inh-caps=+{CAPABILITY}", f"--ambient-caps=+{CAPABILITY}", "--securebits=+no_setuid_fixup"]
        return [*prefix, "--", *arguments]

    def own(self, path: Path) -> None:
        """Give a file or an empty folder of ours to the account; a no-op when it is our own."""
        if self.name is not None:
            os.chown(path, self.uid, self.gid)


def for_data(data: Path, must_read: Sequence[Path]) -> Account:
    """The account for a data folder: ourselves, or as root its owner, or the user `noesis` (created when absent).

    `must_read` are the files and folders it has to reach: the binaries, their libraries, the folder of the data.
    Raises AccountError, with what to do, when no account fits.
    """
    if os.geteuid() != 0:
        if data.exists() and data.stat().st_uid != os.geteuid():
            owner = _name(data.stat().st_uid)
            raise AccountError(f"{data} belongs to {owner}: run as {owner} or root, or set another NOESIS_HOME")
        return Account(None, os.geteuid(), os.getegid())
    entry = _owner(data) or _service_user()
    plain = Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    if _reaches(plain, must_read):
        return plain
    through = Account(entry.pw_name, entry.pw_uid, entry.pw_gid, reaches_through=True)
    if _reaches(through, must_read):
        return through
    raise AccountError(
        f"PostgreSQL may not run as root, and the user {entry.pw_name} cannot reach {must_read[0]} or {must_read[-1]}: "
        "put the checkout and NOESIS_HOME into folders that user may enter, or run as a normal user"
    )


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _owner(data: Path) -> pwd.struct_passwd | None:
    if not data.exists() or data.stat().st_uid == 0:
        return None
    try:
        return pwd.getpwuid(data.stat().st_uid)
    except KeyError as error:
        raise AccountError(f"{data} belongs to uid {data.stat().st_uid}, which no account here has") from error


def _service_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(PREFERRED)
    except KeyError:
        _create()
    for name in (PREFERRED, *FALLBACKS):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise AccountError(f"PostgreSQL may not run as root: create a user, e.g. `useradd --system {PREFERRED}`")


def _create() -> None:
    # /usr/sbin is often missing from PATH after a plain `su`.
    useradd = shutil.which("useradd") or shutil.which("useradd", path="/usr/sbin:/sbin")
    if useradd is None:
        return
    options = ["--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/bin/false"]
    # A failure (read-only /etc, two runners at once) is not the end: the fallbacks follow.
    subprocess.run([useradd, *options, PREFERRED], check=False, capture_output=True)


def _setpriv() -> str:
    found = shutil.which("setpriv") or shutil.which("setpriv", path="/usr/bin:/bin")
    if found is None:
        raise AccountError("as root `setpriv` (util-linux) is needed to start PostgreSQL as another user: install it")
    return found


def _reaches(account: Account, paths: Sequence[Path]) -> bool:
    """Ask the kernel, as that user: modes alone do not tell about ACLs, mounts and capabilities."""
    # Opening and entering, not `test -r`: access(2) answers for the real user and may ignore ambient capabilities.
    script = 'for path in "$@"; do if [ -d "$path" ]; then cd "$path" || exit 1; else : < "$path" || exit 1; fi; done'
    command = account.command(["/bin/sh", "-c", script, "sh", *map(str, paths)])
    return subprocess.run(command, check=False, capture_output=True, cwd="/").returncode == 0
