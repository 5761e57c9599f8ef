"""The stages of the main job, as plain functions over the store: import → chunk → embed → index.

Each stage is idempotent and commits in slices, so a killed run is repeated from where it stopped. Dagster's assets call
these; nothing here knows Dagster.
"""
