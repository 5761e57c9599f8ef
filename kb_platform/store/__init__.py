"""PostgreSQL: the only place with SQL.

Each module is one noun of the database: the release log, chunks, embeddings, index versions, quarantine.
`Database` hands out connections; `schema` migrates; `embedded` runs a server of our own where none is given.
"""
