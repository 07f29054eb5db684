"""Answers that quote a deleted document are kept, but not shown: a restoration shows them again, a purge erases them.

The whole answer is withheld, not only the sentence with the quotation: nobody can tell what else came from there.
"""

from __future__ import annotations

_GONE = """not exists (select from rag.documents d where d.tenant_id = c.tenant_id and d.document_id = c.document_id
                   and d.state <> 'deleted')"""

WITHHELD = (
    f"""exists (select from core.citations c where c.tenant_id = r.tenant_id and c.run_id = r.run_id and {_GONE})"""
)
"""SQL: whether the answer of the run `r` quotes a document that is deleted or purged."""

NOTICES = {
    "en": "This answer quoted a document that has been deleted. Ask again for an answer from what is there now.",
    "de": "Diese Antwort zitierte ein Dokument, das gelöscht wurde. Fragen Sie noch einmal, um eine Antwort aus dem zu "
    "bekommen, was jetzt da ist.",
}
"""What stands in place of a withheld answer, by language; also in the database, once the document is purged."""

TITLES = {"en": "Deleted document", "de": "Gelöschtes Dokument"}


def _by_language(texts: dict[str, str]) -> str:
    return f"case r.language when 'de' then '{texts['de']}' else '{texts['en']}' end"


NOTICE = _by_language(NOTICES)
"""SQL: the notice for the run `r`."""

ANSWER = f"case when {WITHHELD} then {NOTICE} else r.answer end as answer"
"""SQL: what is shown of the answer of the run `r`."""

CITATIONS = f"""
select c.number, c.document_id, c.version_id, c.chunk_id,
       case when {_GONE} then {_by_language(TITLES)} else c.title end as title,
       case when {_GONE} then '[]'::jsonb else c.heading_path end as heading_path,
       case when {_GONE} then null else c.page end as page,
       case when {_GONE} then '' else c.quote end as quote,
       case when {_GONE} then 0 else c.quote_start end as quote_start,
       case when {_GONE} then 0 else c.quote_end end as quote_end
from core.citations c join core.runs r on r.tenant_id = c.tenant_id and r.run_id = c.run_id
where c.tenant_id = :tenant and c.run_id = :run order by c.number
"""
"""SQL: the citations of a run as they are shown: what is deleted is named so, without title, place and quotation."""

EVENT_DATA = f"case when e.kind = 'token' and {WITHHELD} then jsonb_set(e.data, '{{text}}', '\"\"') else e.data end"
"""SQL: the data of the event `e` of the run `r`; the draft of a withheld answer is empty."""
