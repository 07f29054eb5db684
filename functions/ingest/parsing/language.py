"""Which language a text is in: German and English by their commonest words, everything else by a model.

Counting a few words that the other languages do not have is some thirty times faster than the model and settles
nearly every chunk of a German or English corpus (`benchmarks/chunking.py` prints how often and how well).
"""

from __future__ import annotations

from functools import lru_cache
from itertools import islice
from typing import Any

# Words of one language that are no words of the other, nor common ones of their neighbours.
_GERMAN = (" und ", " der ", " nicht ", " oder ", " dem ", " wird ")
_ENGLISH = (" the ", " of ", " and ", " with ", " that ")
# Languages the model may answer; a longer list only makes short German and English texts drift into neighbours.
LANGUAGES = (
    *("ar", "bg", "cs", "da", "de", "el", "en", "es", "fi", "fr", "he", "hr", "hu", "it", "ja", "ko"),
    *("nl", "no", "pl", "pt", "ro", "ru", "sk", "sl", "sv", "tr", "uk", "zh"),
)
MINIMUM = 60
"""Characters below which a guess is worth less than the language of the text around it."""
_HEAD, _SAMPLE = 1200, 400


def language_of(text: str, otherwise: str | None = None) -> str | None:
    """The ISO 639-1 code of `text`, or `otherwise` where it is too short or too mixed to tell."""
    head = text[:_HEAD]
    german = sum([head.count(word) for word in _GERMAN])
    english = sum([head.count(word) for word in _ENGLISH])
    if german >= 3 and german > english * 4:
        return "de"
    if english >= 3 and english > german * 4:
        return "en"
    if len(text) < MINIMUM:
        return otherwise
    start = max(0, (len(text) - _SAMPLE) // 2)
    sample = text[start : start + _SAMPLE]
    if next(islice(filter(str.isalpha, sample), MINIMUM // 2 - 1, None), None) is None:
        return otherwise
    code, confidence = _model().classify(sample)
    return code if confidence >= 0.8 else otherwise


@lru_cache(maxsize=1)
def _model() -> Any:
    # Late: 0.6 s and 70 MB, needed only for what the words do not settle.
    from array import array

    import numpy as np
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    model.set_languages(LANGUAGES)
    # The same numbers laid out for where they are read: a feature's row side by side and as wide as the sum it goes
    # into, the automaton's tables without an object a number. A text costs a fifth less, the process 8 MB less.
    model.nb_ptc = np.ascontiguousarray(model.nb_ptc, dtype=np.float32)
    model.tk_output = array("i", model.tk_output)
    model._rowbase = array("i", model._rowbase)
    return model
