"""The knowledge base itself: releases in, cited answers out. Plain Python.

Knows neither Dagster nor Streamlit: `definitions` alone puts it together with them. Data flows one way, and so do imports:
`sources`, `text` and `embedding` are read by `store`; then come `stages`, `retrieval`, `answering`, `evaluation` and `cli`.
"""
