"""Passages → an answer in which every statement is cited.

Belongs here: extractive answers, computed answers (ranges, dates, counts), the changes between two versions, citations. A
language model's answers will be made here too, from the same passages and citations. Does not belong here: finding passages.
"""
