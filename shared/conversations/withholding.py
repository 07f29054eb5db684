"""Answers that quote what their reader may not see (any more) are kept, but not shown.

Of a deleted document: a restoration shows them again, a purge erases them. Of one whose access was narrowed, or whose
groups the member has left: as long as that is so, and from the same moment as in the search. The whole answer is
withheld, not only the sentence with the quotation: nobody can tell what else came from there.
"""

from __future__ import annotations

_DOCUMENT = (
    "select from rag.documents d where d.tenant_id = c.tenant_id and d.document_id = c.document_id "
    "and d.state <> 'deleted'"
)
_GONE = f"not exists ({_DOCUMENT})"

# The same condition as in the search and in `shared.documents.reading`, for the member who asked.
_CLOSED = f"""not exists ({_DOCUMENT} and ((d.access_members = '{{}}' and d.access_groups = '{{}}')
 or d.access_members && array(select m.email from core.members m
                              where m.tenant_id = r.tenant_id and m.member_id = r.member_id)
 or d.access_groups && array(select g.name from core.groups g join core.group_members gm
                              on gm.tenant_id = g.tenant_id and gm.group_id = g.group_id
                              where g.tenant_id = r.tenant_id and gm.member_id = r.member_id)))"""
"""Deleted ones are closed too."""


def _quotes(what: str) -> str:
    return f"exists (select from core.citations c where c.tenant_id = r.tenant_id and c.run_id = r.run_id and {what})"


WITHHELD = _quotes(_CLOSED)
"""SQL: whether the answer of the run `r` quotes a document that is deleted, or that its member may not see now."""

NOTICES = {
    "en": "This answer quoted a document that has been deleted. Ask again for an answer from what is there now.",
    "de": "Diese Antwort zitierte ein Dokument, das gelöscht wurde. Fragen Sie noch einmal, um eine Antwort aus dem zu "
    "bekommen, was jetzt da ist.",
}
"""What stands in place of a withheld answer, by language; also in the database, once the document is purged."""

CLOSED_NOTICES = {
    "en": "This answer quoted a document that you may no longer see. Ask again for an answer from what you may see "
    "now.",
    "de": "Diese Antwort zitierte ein Dokument, das Sie nicht mehr sehen dürfen. Fragen Sie noch einmal, um eine "
    "Antwort aus dem zu bekommen, was Sie jetzt sehen dürfen.",
}
"""The same for a document whose access has changed."""

TITLES = {"en": "Deleted document", "de": "Gelöschtes Dokument"}
CLOSED_TITLES = {"en": "Document without access", "de": "Dokument ohne Zugriff"}


def _by_language(texts: dict[str, str]) -> str:
    return f"case r.language when 'de' then '{texts['de']}' else '{texts['en']}' end"


NOTICE = _by_language(NOTICES)
"""SQL: the notice for the run `r`."""

ANSWER = (
    f"case when not {WITHHELD} then r.answer when {_quotes(_GONE)} then {NOTICE} "
    f"else {_by_language(CLOSED_NOTICES)} end as answer"
)
"""SQL: what is shown of the answer of the run `r`."""

CITATIONS = f"""
select c.run_id, c.number, c.document_id, c.version_id, c.chunk_id,
       case when not {_CLOSED} then c.title when {_GONE} then {_by_language(TITLES)}
            else {_by_language(CLOSED_TITLES)} end as title,
       case when {_CLOSED} then '[]'::jsonb else c.heading_path end as heading_path,
       case when {_CLOSED} then null else c.page end as page,
       case when {_CLOSED} then '' else c.quote end as quote,
       case when {_CLOSED} then 0 else c.quote_start end as quote_start,
       case when {_CLOSED} then 0 else c.quote_end end as quote_end
from core.citations c join core.runs r on r.tenant_id = c.tenant_id and r.run_id = c.run_id
where c.tenant_id = :tenant and c.run_id = any(cast(:runs as uuid[])) order by c.run_id, c.number
"""
"""SQL: the citations of runs as they are shown: what is withheld is named so, without title, place and quotation."""

EVENT_DATA = f"case when e.kind = 'token' and {WITHHELD} then jsonb_set(e.data, '{{text}}', '\"\"') else e.data end"
"""SQL: the data of the event `e` of the run `r`; the draft of a withheld answer is empty."""
