"""How right the answers are: golden questions and metrics over them.

Belongs here: reading questions, scoring what a search or an answer gave for them. Does not belong here: searching and
answering themselves.
"""
