"""The asset graph: raw_releases → chunks → embeddings → release_index, by repository.

One module for each asset, one for what they have in common (`stage`), one for where they run (`placement`), and the work
that is asked of them (`jobs`, `refresh`). What a stage does is `kb_platform.stages`; here stands what Dagster must know.
"""
