"""Dagster resources: each wraps one thing of kb_platform and hands out the plain object.

Assets ask for that object (`database: dg.ResourceParam[Database]`), so a test passes its own. Logic belongs in
kb_platform.
"""
