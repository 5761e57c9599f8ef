"""What is done with the text of releases: pure functions that read and write nothing.

Belongs here: a release body → chunks (`chunk` and the modules it names), readable text (`cleaning`), terms for
the word index (`words`), versions (`versions`). Does not belong here: fetching, storing or ranking text.
"""
