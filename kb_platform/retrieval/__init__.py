"""A question → passages.

Belongs here: understanding a question, filters, the order of what was found. Does not belong here: how words and vectors of
a chunk are made (`text`, `embedding`), SQL (`store`), what is said with the passages (`answering`).
"""
