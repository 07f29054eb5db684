"""Names of people where something says that one follows: a salutation, a title, a label with a known first name. Pure.

Words alone do not tell a name from a noun, least of all in German, so this finds few names, but what it finds are
names (docs/privacy.md has the figures). A tenant adds the names that matter as terms.
"""

from __future__ import annotations

import re

from shared.masking.places import Place, without

_WORD = r"[A-ZÄÖÜÉÁŁŠŽÇ][a-zäöüßéèáàâêëíóôúçñšžłč]+(?:[-'’][A-ZÄÖÜÉ]?[a-zäöüßéèáàç]+)*"
_PARTICLE = r"(?:von der|von dem|von den|van den|van der|von|van|vom|zu|zur|de la|de|del|di|da|dos|al|el|ten|ter)"
_DEGREE = r"(?:Dr|Prof|Dipl|Mag|Ing|med|jur|phil|rer|nat|h|c|habil|em|Priv|Doz|Sc|Ph)\.(?:-Ing\.)?"
_TITLE = rf"(?:{_DEGREE}|PD|Graf|Gräfin|Freiherr)"
_TITLES = rf"(?:{_TITLE}[ -]?){{0,5}}"
_SALUTED = re.compile(
    rf"(?<![\w-])(?P<lead>Herrn?|Frau|Fräulein|Hr\.|Fr\.|Mr\.?|Mrs\.?|Ms\.?|Miss|Monsieur|Madame|Signora?|Dr\.|Prof\.)"
    rf"[ \xa0]{_TITLES} ?(?P<name>(?:{_PARTICLE} )?{_WORD}(?: [A-ZÄÖÜ]\.)?(?: (?:{_PARTICLE} )?{_WORD}){{0,2}})(?![\w])"
)
_LABELLED = re.compile(
    rf"(?<![\w-])(?:Vor- und Nachname|Name|Ansprechpartner(?:in)?|Kontaktperson|Bearbeiter(?:in)?|Sachbearbeiter(?:in)?"
    rf"|Mitarbeiter(?:in)?|Patient(?:in)?|Versicherte[rn]?|Mieter(?:in)?|Kunde|Kundin|Unterzeichner(?:in)?|gez\.|Contact"
    rf"|Employee|Patient|Tenant|Customer|Full name|Signed by)(?: ?: ?| )"
    rf"(?P<name>{_WORD}(?: (?:{_PARTICLE} )?{_WORD}){{1,2}})(?!\w)"
)
# One of these stands in whatever the two patterns match: looking for them is many times faster than trying everywhere.
_ANNOUNCING = (
    "Herr",
    "Frau",
    "Fräulein",
    "Hr.",
    "Fr.",
    "Mr",
    "Mrs",
    "Ms",
    "Miss",
    "Mons",
    "Madame",
    "Signor",
    "Dr.",
    "Prof.",
    "ame",
    "prech",
    "Kontakt",
    "earbeiter",
    "itarbeiter",
    "atient",
    "ersichert",
    "Mieter",
    "Kund",
    "Unterz",
    "gez.",
    "Contact",
    "Employee",
    "Tenant",
    "Customer",
    "Signed",
)
_BEFORE = re.compile(r"([^\W\d_]+)[ \xa0]$")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# A determiner before "Frau" or "Herr" makes it a woman or a master, and the next word a noun.
_DETERMINERS = _words("""
der die das den dem des ein eine einer einem einen eines jede jeder jedem jeden jedes keine keiner kein diese
dieser diesem diesen mehrere alle allen beide beiden schwangere schwangeren stillende stillenden zur zum
""")
# Offices and roles are no names.
_ROLES = _words("""
Präsident Präsidentin Bundespräsident Bundeskanzler Bundeskanzlerin Kanzler Kanzlerin Minister Ministerin
Bundesminister Bundesministerin Staatssekretär Staatssekretärin Vorsitzende Vorsitzender Vorsitzenden Direktor
Direktorin Abgeordnete Abgeordneter Abgeordneten Kollege Kollegin Kollegen Doktor Professor Professorin Richter
Richterin Bürgermeister Bürgermeisterin Oberbürgermeister Rechtsanwalt Rechtsanwältin Pfarrer General
Botschafter Notar Notarin Staatsanwalt Staatsanwältin Senator Senatorin President Chairman Chair Speaker Justice
Judge
""")
_ROLE_ENDINGS = (
    "führer",
    "führerin",
    "leiter",
    "leiterin",
    "beauftragte",
    "beauftragter",
    "beauftragten",
    "präsident",
    "präsidentin",
    "minister",
    "ministerin",
    "direktor",
    "direktorin",
    "vorsitzende",
    "vorsitzender",
    "vorsitzenden",
    "richter",
    "richterin",
    "meisterin",
    "referent",
    "referentin",
    "anwältin",
    "anwalt",
)
FIRST_NAMES = _words("""
Alexander Alexandra Ali Andrea Andreas Angela Angelika Anja Anke Anna Anne Annette Antje Anton Astrid Barbara
Beate Ben Bernd Bernhard Bettina Birgit Björn Brigitte Britta Carla Carsten Charlotte Christa Christian
Christiane Christina Christine Christoph Clara Claudia Cornelia Daniel Daniela David Dennis Detlef Dieter Dirk
Dominik Doris Edith Elena Elias Elisabeth Elke Ella Emil Emilia Emily Emma Erich Erik Erika Ernst Eva Fabian
Fatima Felix Finn Franz-Josef Florian Frank Franz Franziska Friedrich Fritz Gabriele Georg Gerd Gerhard Gisela
Gudrun Günter Günther Hanna Hannah Hans Harald Heike Heiko Heinrich Heinz Helena Helga Helmut Herbert Hermann
Holger Horst Ida Ilse Ines Inge Ingo Ingrid Irene Iris Jan Jana Jens Joachim Johann Johanna Johannes Jonas Josef
Judith Julia Julian Jürgen Jutta Kai Karin Karl Karla Katharina Kathrin Katja Katrin Kerstin Kevin Klara Klaus
Kurt Lara Laura Lea Lena Leon Leonie Lina Lisa Lothar Luca Luis Luisa Lukas Manfred Manuela Marcel Marco Marcus
Maria Marie Marina Mario Marion Markus Marlene Martin Martina Mathias Matthias Max Maximilian Mehmet Melanie Mia
Michael Michaela Mila Mohammed Monika Moritz Mustafa Nadine Natalie Nicole Niklas Nina Noah Norbert Olaf Olga
Oliver Oskar Otto Patricia Patrick Paul Paula Peter Petra Philipp Rainer Ralf Raphael Regina Reinhard Renate
René Richard Rita Robert Roland Rolf Rosa Rudolf Sabine Sandra Sara Sarah Sebastian Silke Silvia Simon Simone
Sonja Sophia Sophie Stefan Stefanie Steffen Stephan Susanne Sven Svenja Sylvia Tanja Theo Theresa Theodor Thomas
Thorsten Tim Timo Tobias Tom Torsten Udo Ulrich Ulrike Ursula Ute Uwe Vera Verena Viktor Viktoria Volker Walter
Werner Wilhelm Wolfgang Yusuf Adam Alan Alice Amanda Amy Andrew Anthony Ashley Benjamin Betty Brandon Brenda
Brian Carol Carolyn Catherine Charles Cynthia Deborah Donald Donna Dorothy Edward Elizabeth Eric Ethan Eugene
Gary George Grace Gregory Harry Heather Helen Henry Jack Jacob James Janet Jason Jean Jeffrey Jennifer Jeremy
Jessica Joan John Jonathan Jose Joseph Joshua Joyce Juan Justin Karen Kathleen Keith Kelly Kenneth Kimberly
Larry Lauren Linda Margaret Mark Mary Matthew Megan Melissa Michelle Nancy Nathan Nicholas Olivia Pamela Patrick
Rachel Raymond Rebecca Roger Ronald Russell Ruth Ryan Samantha Samuel Scott Sean Sharon Stephen Steven Susan
Teresa Timothy Tyler Victoria Vincent Virginia William Zachary
""")


def names(text: str) -> list[Place]:
    """The names (without salutation and titles) that something announces."""
    if not any(word in text for word in _ANNOUNCING):
        return []
    found = [place for match in _SALUTED.finditer(text) if (place := _saluted(match))]
    for match in _LABELLED.finditer(without(text, found) if found else text):
        if match["name"].split(" ")[0].partition("-")[0] in FIRST_NAMES:
            found.append(match.span("name"))
    return sorted(found)


def _saluted(match: re.Match[str]) -> Place | None:
    name, start = match["name"], match.start("name")
    words = name.split(" ")
    ahead = _BEFORE.search(match.string, max(0, match.start() - 30), match.start())
    if (
        ahead
        and ahead[1].lower() in _DETERMINERS
        and match["lead"] in ("Herr", "Herrn", "Frau")
        and (words[0] not in FIRST_NAMES)
    ):
        return None
    while words and _is_role(words[0]):
        start += len(words.pop(0)) + 1
    surname = next((position for position, word in enumerate(words) if word[0].isupper()), None)
    if surname is None:
        return None
    # Behind a surname a capital letter begins a German noun; behind a first name the surname follows.
    last = surname
    while last + 1 < len(words) and _goes_on(words[last], words[last + 1]):
        last += 1
    kept = " ".join(words[: last + 1])
    return start, start + len(kept)


def _is_role(word: str) -> bool:
    return word in _ROLES or word.endswith(_ROLE_ENDINGS)


def _goes_on(word: str, following: str) -> bool:
    """A first name, an initial and a particle have something after them; before an initial stands a first name."""
    return word.partition("-")[0] in FIRST_NAMES or word.endswith(".") or word[0].islower() or following.endswith(".")
