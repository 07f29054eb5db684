"""The words that the page's script shows, in the language of the request; `{name}` marks what the script fills in."""

from __future__ import annotations

from flask_babel import gettext as _


def page_words() -> dict[str, str]:
    """Words by the names the script uses."""
    return _questions() | _documents()


def _questions() -> dict[str, str]:
    return {
        "queued": _("Your question is waiting its turn …"),
        "step.contextualise": _("Understanding the question"),
        "step.retrieve": _("Searching your documents"),
        "step.rerank": _("Ordering what was found"),
        "step.reason": _("Weighing the passages"),
        "step.act": _("Looking things up"),
        "step.generate": _("Reading and writing"),
        "step.verify": _("Checking every quotation"),
        "step.other": _("Working"),
        "reconnecting": _("The connection was lost. Trying again …"),
        "answered": _("The answer is complete."),
        "no-evidence": _("Your documents do not answer this."),
        "no-evidence-advice": _("Ask in other words, or add a document that covers it."),
        "failed": _("This question could not be answered."),
        "retry": _("Ask again"),
        "sources": _("Sources"),
        "source": _("Source {number}: {title}"),
        "page": _("page {page}"),
        "passage-loading": _("Opening the passage …"),
        "passage-gone": _("This passage is no longer available: its document was removed, or you may not see it."),
        "passage-old": _("From an earlier version of the document."),
        "no-questions": _("Your questions will be kept here."),
        "run.queued": _("waiting"),
        "run.running": _("being answered"),
        "run.waiting": _("waiting for a person"),
        "run.failed": _("failed"),
        "run.cancelled": _("cancelled"),
        "run.no-evidence": _("no evidence"),
        "offline": _("noesis2 cannot be reached. Check the connection and try again."),
        "unexpected": _("Something went wrong on our side."),
    }


def _documents() -> dict[str, str]:
    return {
        "no-documents": _("No documents yet. Add the first one, and ask it something."),
        "state.uploading": _("Uploading, {percent} %"),
        "state.received": _("Received, waiting to be read"),
        "state.ingested": _("Read, {done} of {all} passages indexed"),
        "state.searchable": _("Searchable"),
        "state.searchable-new": _("Searchable; new version: {done} of {all} passages indexed"),
        "state.searchable-failed": _("The earlier version stays searchable. The new one failed:"),
        "state.failed": _("Failed"),
        "state.refused": _("Not added"),
        "too-large": _("The file is larger than {limit}."),
        "too-large-advice": _("Split it into smaller documents and upload those."),
        "empty": _("The file is empty, or a folder."),
        "empty-advice": _("Choose files with content."),
        "dismiss": _("Dismiss"),
        "count.searchable": _("{done} of {all} searchable"),
    }
