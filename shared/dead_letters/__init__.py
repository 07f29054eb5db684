"""Dead letters: messages that nobody could handle, kept with class, reason, attempts and trace, until replayed.

    archived ──▶ open ──▶ replayed ──(it fails again: a new letter that continues the count)──▶ …
                   └────▶ discarded

`archive` writes them (doors, maintenance), `letters` reads them, `replay` brings them on again.
"""
