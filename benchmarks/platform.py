"""The whole platform from outside: warm start, memory, laws to searchable, one document, one question.

    python -m benchmarks.platform [--laws 300]

Starts a platform of its own in a temporary folder on the ordinary ports (stop yours first). Times are of this machine;
what holds elsewhere is their relation to the bare embedding model, which is measured in the same run.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

NOESIS = (sys.executable, "-c", "from cli.main import main; main()")


def noesis(*arguments: str, check: bool = True) -> str:
    """Run `noesis …` and return what it prints."""
    return subprocess.run([*NOESIS, *arguments], check=check, capture_output=True, text=True).stdout


def seconds_to_start() -> float:
    """Wall time of `noesis up --detach`."""
    begun = time.perf_counter()
    noesis("up", "--detach")
    return time.perf_counter() - begun


def memory() -> str:
    """Memory of all processes together."""
    found = json.loads(noesis("status", "--json", check=False))
    return f"{found['pss']:.0f} MiB proportional, {found['rss']:.0f} MiB resident (shared pages counted several times)"


def wait_searchable(tenant_id: UUID, versions: dict[UUID, int]) -> float:
    """Seconds until all documents are searchable."""
    from rich.console import Console

    from cli.submitting import wait_for

    begun = time.perf_counter()
    ended = wait_for(tenant_id, versions, 1800, Console(quiet=True))
    assert len(ended) == len(versions), f"{len(versions) - len(ended)} documents are not searchable"
    return time.perf_counter() - begun


def submit(tenant_id: UUID, files: dict[str, bytes], round_: int) -> dict[UUID, int]:
    """Publish files; returns the versions to wait for."""
    from cli.submitting import SOURCE, publish_all
    from shared.documents.intake import document_id_of
    from shared.events import INLINE_LIMIT, DocumentSubmitted
    from shared.services import services

    events = []
    for name, data in files.items():
        inline = len(data) <= INLINE_LIMIT
        content = base64.b64encode(data).decode() if inline else None
        uri = None if inline else services().storage.put(tenant_id, data)
        events.append(
            DocumentSubmitted(
                tenant_id=tenant_id, external_id=name, source_version=round_, file_name=name, content=content, uri=uri
            )
        )
    publish_all(events)
    return {document_id_of(tenant_id, SOURCE, e.external_id): round_ for e in events}


def ask(principal: Any, question: str) -> tuple[float, float]:
    """Seconds from asking to the first piece of the answer and to the stored answer."""
    from shared.conversations.runs import ask as ask_question
    from shared.conversations.runs import events_after
    from shared.database import tenant_session

    begun = time.perf_counter()
    with tenant_session(principal.tenant_id) as session:
        run_id = ask_question(session, principal, question)
    first = 0.0
    while True:
        with tenant_session(principal.tenant_id) as session:
            kinds = {event.kind for event in events_after(session, principal, run_id, 0)}
        now = time.perf_counter() - begun
        if "token" in kinds and not first:
            first = now
        if kinds & {"answer", "failed"}:
            return first, now
        time.sleep(0.01)


def bare_model(texts: list[str]) -> float:
    """Texts a second of the embedding model behind the proxy, in requests of 32 without anything else."""
    from shared.services import services

    settings = services().settings
    begun = time.perf_counter()
    for start in range(0, len(texts), 32):
        services().models.embed(
            texts[start : start + 32],
            model=settings.embeddings_model,
            dimension=settings.embeddings_dim,
            input_type="passage",
        )
    return len(texts) / (time.perf_counter() - begun)


def laws(count: int) -> dict[str, bytes]:
    """The first laws of ../shared by name; none where it is absent, which is said."""
    shared = Path(os.environ.get("NOESIS_SHARED") or Path(__file__).parents[1].parent / "shared")
    files = {path.name: path.read_bytes() for path in sorted((shared / "data/laws").glob("*.md"))[:count]}
    if not files:
        print("the laws of ../shared are absent: nothing to measure")
    return files


@contextmanager
def own_home() -> Iterator[None]:
    """A folder of its own for the platform that is started inside; afterwards both are gone."""
    home = Path(tempfile.mkdtemp(prefix="noesis-bench-"))
    home.chmod(0o711)
    os.environ["NOESIS_HOME"] = str(home / "home")
    try:
        yield
    finally:
        noesis("down", check=False)
        shutil.rmtree(home, ignore_errors=True)


def main() -> None:
    """Run everything and print the figures."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--laws", type=int, default=300)
    files = laws(arguments.parse_args().laws)
    if not files:
        return
    with own_home():
        print(f"first start, everything installed   {seconds_to_start():6.1f} s")
        noesis("down")
        warm = []
        for _ in range(3):
            warm.append(seconds_to_start())
            if len(warm) < 3:
                noesis("down")
        each = ", ".join(f"{seconds:.1f}" for seconds in warm)
        print(f"warm start                          {statistics.median(warm):6.1f} s (of {each})")
        print(f"memory idle                         {memory()}")
        measure(files)
        print(f"memory after work                   {memory()}")


def measure(files: dict[str, bytes]) -> None:
    """What needs a running platform."""
    from sqlalchemy import text

    from shared.database import operator_session
    from shared.tenants.directory import find_tenant, memberships

    with operator_session() as session:
        tenant = find_tenant(session, "demo")
    principal = memberships("admin@demo.example")[0]
    begun = time.perf_counter()
    wait_searchable(tenant.tenant_id, submit(tenant.tenant_id, files, 1))
    took = time.perf_counter() - begun
    with operator_session() as session:
        texts = [row[0] for row in session.execute(text("select text from rag.chunks order by chunk_id"))]
    alone = bare_model(texts[:320])
    rate = len(texts) / took
    print(f"{len(files)} laws to searchable            {took:6.1f} s")
    print(f"  documents and chunks a second     {len(files) / took:6.1f} and {rate:.1f}")
    print(f"  the model alone                   {alone:6.1f} chunks/s: the pipeline reaches {rate / alone:.2f} of it")
    begun = time.perf_counter()
    wait_searchable(tenant.tenant_id, submit(tenant.tenant_id, files, 2))
    print(f"the same again, unchanged           {time.perf_counter() - begun:6.1f} s")
    single = []
    for n in range(5):
        begun = time.perf_counter()
        note = {f"note-{n}.md": f"# Note {n}\n\nThe meeting number {n} is on Tuesday.".encode()}
        wait_searchable(tenant.tenant_id, submit(tenant.tenant_id, note, 1))
        single.append(time.perf_counter() - begun)
    print(f"one document to searchable          {statistics.median(single):6.2f} s")
    questions = [
        "Wie lange muss die Ruhezeit sein?",
        "Wann verfällt Urlaub?",
        "Who must keep records?",
        "Was ist Nachtarbeit?",
    ]
    times = [ask(principal, question) for question in questions * 3][2:]
    print(f"question to first piece             {statistics.median(t[0] for t in times):6.2f} s")
    print(f"question to answer                  {statistics.median(t[1] for t in times):6.2f} s")


if __name__ == "__main__":
    main()
