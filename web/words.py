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
        "waits.approval": _("Waiting for a person to agree"),
        "waits.budget": _("Waiting for budget"),
        "waits.price": _("Waiting for the price of the model"),
        "waits.provider": _("Waiting for the model's provider"),
        "step.generate": _("Reading and writing"),
        "step.verify": _("Checking every quotation"),
        "step.other": _("Working"),
        "reconnecting": _("The connection was lost. Trying again …"),
        "answered": _("The answer is complete."),
        "no-evidence": _("Your documents do not answer this."),
        "no-evidence-advice": _("Ask in other words, or add a document that covers it."),
        "failed": _("This question could not be answered."),
        "retry": _("Ask again"),
        "stop": _("Stop"),
        "judge": _("Was this answer good?"),
        "judge.up": _("Yes"),
        "judge.down": _("No"),
        "judge.comment": _("What was wrong?"),
        "judge.send": _("Send"),
        "judged": _("Thank you."),
        "sources": _("Sources"),
        "source": _("Source {number}: {title}"),
        "page": _("page {page}"),
        "passage-loading": _("Opening the passage …"),
        "passage-gone": _("This passage is no longer available: its document was removed, or you may not see it."),
        "passage-old": _("From an earlier version of the document."),
        "checked": _("Checked: {what}"),
        "checked.dropped": _("A draft was dropped because nothing in it was proven: {what}"),
        "finding.invented": _("invented quotation"),
        "finding.altered-number": _("altered number"),
        "finding.mixed-sources": _("quotation sewn together from two passages"),
        "finding.wrong-number": _("wrong source"),
        "finding.unsupported": _("statement its source does not carry"),
        "finding.unmarked": _("statement without a source"),
        "finding.prompt-withheld": _("instructions to the model withheld"),
        "finding.address-removed": _("web address removed"),
        "ask.first": _("Ask your documents a question"),
        "ask.on": _("Ask a follow-up question"),
        "questions": _("{count} questions"),
        "no-questions": _("Your questions will be kept here."),
        "run.queued": _("waiting"),
        "run.running": _("being answered"),
        "run.waiting": _("waiting"),
        "run.failed": _("failed"),
        "run.cancelled": _("cancelled"),
        "run.no-evidence": _("no evidence"),
        "offline": _("noesis2 cannot be reached. Check the connection and try again."),
        "unexpected": _("Something went wrong on our side."),
    }


def _documents() -> dict[str, str]:
    return {
        "cancel": _("Stop"),
        "cancel-document": _("Stop adding “{title}”"),
        "delete": _("Delete “{title}”"),
        "delete-sure": _("Delete “{title}”? It is hidden at once, and can be restored for 30 days."),
        "deleted": _("“{title}” was deleted."),
        "restore": _("Restore it"),
        "no-documents": _("No documents yet. Add the first one, and ask it something."),
        "state.uploading": _("Uploading, {percent} %"),
        "state.received": _("Received, waiting to be read"),
        "state.ingested": _("Read, {done} of {all} passages indexed"),
        "waiting.turn": _("Waiting for its turn: other documents of yours are being read"),
        "waiting.site": _("Waiting for the web site that has it"),
        "waiting.provider": _("Waiting for the provider of the model"),
        "waiting.budget": _("Waiting for the budget: it is used up and has to be raised, or a new period to begin"),
        "waiting.price": _("Waiting for the price of the model, which an operator enters"),
        "waiting.until": _("{what}; goes on at {time}"),
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
