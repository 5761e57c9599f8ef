"""Where releases come from.

Belongs here: the Release that every source speaks of, the reading of GitHub's JSON, of files, and of whatever else is a
source. Does not belong here: what is stored of it (`store`), or how a body is understood (`text`).
"""
