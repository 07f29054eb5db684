"""Golden sets: questions with what must be found, as JSON Lines; and the corpora they ask about.

A file of questions has one object a line:
`{"id": …, "question": …, "language": "de", "relevant": [{"document": …, "passage": …, "grade": 1}], "answers": [...]}`.
`document` is the external id it was submitted under; `passage`, when given, is a text that the right chunk contains.
A corpus has `{"document": …, "title": …, "language": …, "text": …}` a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import PermanentError
from shared.retrieval.questions import written

_Item = TypeVar("_Item", bound=BaseModel)

LONGEST_LINE = 4_000_000
"""Characters; a line longer than the longest document we take is no golden set."""


class Relevant(BaseModel):
    """A document that answers, and optionally the text the chunk must contain."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    document: str = Field(min_length=1)
    passage: str | None = None
    grade: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class Question(BaseModel):
    """A question with what must be found. No `relevant` means: the corpus has no evidence for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    question: str = Field(min_length=1)
    language: str = "simple"
    relevant: tuple[Relevant, ...] = ()
    answers: tuple[str, ...] = ()


class CorpusText(BaseModel):
    """A document of a corpus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    document: str = Field(min_length=1)
    title: str
    language: str
    text: str


def read_questions(path: Path) -> list[Question]:
    """The questions of a file. Raises PermanentError `bad-golden-set` naming the line.

    Twice the same id is an error: a question that counts twice makes intervals narrower than they are, and one that is
    in both halves of a calibration is no unseen one.
    """
    lines: dict[str, int] = {}
    questions = []
    for number, line in _lines(path):
        question = _parsed(Question, path, number, line)
        if (first := lines.setdefault(question.id, number)) != number:
            raise _bad(path, number, f"the id {question.id!r} is that of line {first}")
        questions.append(question)
    return questions


def read_items(kind: type[_Item], path: Path) -> list[_Item]:
    """One object of `kind` a line. Raises PermanentError `bad-golden-set` naming the line."""
    return [_parsed(kind, path, number, line) for number, line in _lines(path)]


def read_corpus(path: Path) -> list[CorpusText]:
    """The documents of a corpus file. Raises PermanentError `bad-golden-set` naming the line."""
    return [_parsed(CorpusText, path, number, line) for number, line in _lines(path)]


def write(path: Path, items: Iterable[BaseModel]) -> int:
    """Write one object a line; returns how many."""
    lines = [item.model_dump_json(exclude_defaults=True) for item in items]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return len(lines)


def append(path: Path, question: Question) -> None:
    """Add one question, as feedback does: a question of a user and the passage that answered it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(question.model_dump_json(exclude_defaults=True) + "\n")


def merged(known: Iterable[Question], new: Iterable[Question]) -> list[Question]:
    """A golden set grown by other questions: the same words are one question, what answers it is joined.

    Order, ids and languages are those of the first. A question that once had evidence keeps it: that somebody else's
    documents held none says nothing about it.
    """
    found: dict[str, Question] = {}
    for question in (*known, *new):
        key = " ".join(re.findall(r"\w+", question.question.casefold()))
        first = found.setdefault(key, question)
        relevant = {(r.document, r.passage): r for r in (*question.relevant, *first.relevant)}
        here = [(r.document, r.passage) for r in first.relevant]
        later = [place for place in relevant if place not in here]
        found[key] = first.model_copy(
            update={
                "relevant": tuple(relevant[place] for place in (*here, *later)),
                "answers": tuple(dict.fromkeys((*first.answers, *question.answers))),
            }
        )
    return list(found.values())


def held_out(
    texts: Sequence[CorpusText], questions: Sequence[Question], every: int
) -> tuple[list[CorpusText], list[Question], list[Question]]:
    """Corpus without every `every`-th article, the questions that it answers, and those that it no longer does.

    For the evidence gate: the unanswerable ones are real questions of the same kind. An article is a document's id up
    to its last hyphen, so that no neighbouring paragraph answers. ValueError below 2.
    """
    if every < 2:
        raise ValueError("at most every second article can be held out")
    articles = list(dict.fromkeys(text.document.rpartition("-")[0] for text in texts))
    gone = set(articles[every - 1 :: every])
    kept = [text for text in texts if text.document.rpartition("-")[0] not in gone]
    left = {text.document for text in kept}
    answerable = [question for question in questions if any(r.document in left for r in question.relevant)]
    unanswerable = [
        question.model_copy(update={"relevant": (), "answers": ()})
        for question in questions
        if not any(r.document in left for r in question.relevant)
    ]
    return kept, answerable, unanswerable


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8-sig") as file:  # editors on Windows begin a file with a byte order mark
            for number, line in enumerate(file, start=1):
                if len(line) > LONGEST_LINE:
                    raise _bad(path, number, "the line is too long")
                if line.strip():
                    yield number, line
    except OSError as error:
        raise PermanentError("bad-golden-set", f"{path} cannot be read: {error.strerror}.", "Check the path.") from None
    except UnicodeDecodeError:
        raise PermanentError("bad-golden-set", f"{path} is not UTF-8.", "Save it as UTF-8.") from None


def _parsed(kind: type[_Item], path: Path, number: int, line: str) -> _Item:
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise _bad(path, number, f"{where}: {problem['msg']}" if where else problem["msg"]) from None


def _bad(path: Path, number: int, problem: str) -> PermanentError:
    return PermanentError(
        "bad-golden-set", f"{path}, line {number}: {problem}.", "See docs/retrieval.md for the form of a golden set."
    )


# ---- converters -----------------------------------------------------------------------------------------------------


class _Answer(BaseModel):
    text: str
    answer_start: int


class _Asked(BaseModel):
    id: str
    question: str
    answers: list[_Answer]


class _Paragraph(BaseModel):
    context: str
    qas: list[_Asked]


class _Article(BaseModel):
    title: str
    paragraphs: list[_Paragraph]


class _Squad(BaseModel):
    data: list[_Article]


def xquad(questions: Path, corpus: Path, asked_in: str, written_in: str) -> tuple[list[CorpusText], list[Question]]:
    """SQuAD-format files (XQuAD: the same paragraphs in each language) to a corpus of paragraphs and its questions.

    `questions` and `corpus` are the files of the two languages; the same file twice for one language. The right
    paragraph is the one at the same place, because translations keep the order.
    """
    texts, found = [], []
    asking, writing = (_Squad.model_validate_json(path.read_text(encoding="utf-8")) for path in (questions, corpus))
    for number, (article, translated) in enumerate(zip(asking.data, writing.data, strict=True)):
        pairs = zip(article.paragraphs, translated.paragraphs, strict=True)
        for place, (paragraph, target) in enumerate(pairs):
            document = f"xquad-{number:02}-{place}"
            texts.append(
                CorpusText(document=document, title=translated.title, language=written_in, text=target.context)
            )
            answers = {qa.id: tuple(answer.text for answer in qa.answers) for qa in target.qas}
            found += [
                Question(
                    id=f"{asked_in}-{written_in}-{qa.id}",
                    question=qa.question,
                    language=asked_in,
                    relevant=(Relevant(document=document, passage=next(iter(answers.get(qa.id, ())), None)),),
                    answers=answers.get(qa.id, ()),
                )
                for qa in paragraph.qas
            ]
    return texts, found


def cranfield(folder: Path) -> tuple[list[CorpusText], list[Question]]:
    """The Cranfield collection in its TREC form: `cran.all.1400.xml`, `cran.qry.xml`, `cranqrel.trec.txt`.

    Queries are numbered by their place, not by their `<num>` (the judgments follow the place: the collection's known
    trap). Grades 1 (possibly of interest) to 4 (complete answer) as judged; -1 and 0 mean not relevant.
    """
    documents = [
        CorpusText(document=f"cranfield-{number}", title=title, language="en", text=body)
        for number, title, body in _cranfield_texts((folder / "cran.all.1400.xml").read_text(encoding="utf-8"))
    ]
    grades: dict[int, list[Relevant]] = {}
    for line in (folder / "cranqrel.trec.txt").read_text(encoding="utf-8").splitlines():
        query, _, document, grade = line.split()
        if int(grade) > 0:
            grades.setdefault(int(query), []).append(Relevant(document=f"cranfield-{document}", grade=float(grade)))
    titles = re.findall(r"<title>(.*?)</title>", (folder / "cran.qry.xml").read_text(encoding="utf-8"), re.DOTALL)
    questions = [
        Question(id=f"cranfield-{place}", question=_flat(title), language="en", relevant=tuple(grades.get(place, ())))
        for place, title in enumerate(titles, start=1)
        if grades.get(place)
    ]
    return documents, questions


def _cranfield_texts(xml: str) -> Iterator[tuple[str, str, str]]:
    for block in re.findall(r"<doc>(.*?)</doc>", xml, re.DOTALL):
        number, title, body = (
            (re.search(rf"<{tag}>(.*?)</{tag}>", block, re.DOTALL) or re.match("()", ""))
            for tag in ("docno", "title", "text")
        )
        assert number is not None and title is not None and body is not None  # noqa: PT018 # the empty match matches
        text = _flat(body[1])
        if text:
            yield number[1].strip(), _flat(title[1]), text


def _flat(text: str) -> str:
    return " ".join(text.split())


_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_SECTION = re.compile(r"^## (§ \S+|Art \S+) (.{12,100})\n+((?:(?!^#).*\n?)+)", re.MULTILINE)


def known_items(laws: Sequence[Path], wanted: int = 300) -> list[Question]:
    """Known-item questions over German laws: a section is asked for by its law and what its heading is about.

    `laws` are Markdown files with front matter (`jurabk:` the short name). Every question has one right section; the
    passage is the beginning of its first line. Sections are taken evenly over the laws, without chance.
    """
    per_law: list[list[Question]] = []
    for path in laws:
        text = path.read_text(encoding="utf-8")
        front = _FRONT.match(text)
        short = re.search(r"^jurabk: *(.+)$", front[1] if front else "", re.MULTILINE)
        if short is None:
            continue
        per_law.append(
            [
                Question(
                    id=f"law-{path.stem}-{place}",
                    question=f"{short[1].strip()} {heading.strip()}",
                    language="de",
                    relevant=(Relevant(document=path.stem, passage=first),),
                )
                for place, (_, heading, body) in enumerate(_SECTION.findall(text))
                if (first := _first_line(body))
            ]
        )
    turns = max(map(len, per_law), default=0)
    questions = [items[turn] for turn in range(turns) for items in per_law if turn < len(items)]
    return questions[:wanted]


def _first_line(body: str) -> str:
    line = body.strip().partition("\n")[0].strip()
    return line if len(line) >= 20 and line.lower() != "(weggefallen)" else ""


def contains(chunk: str, passage: str | None) -> bool:
    """Whether a chunk holds the expected passage; line breaks, runs of spaces and how letters are composed do not
    matter. No passage: yes."""
    return passage is None or _flat(written(passage)) in _flat(written(chunk))
