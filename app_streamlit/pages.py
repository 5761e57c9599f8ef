"""What runs for each visitor and each click: the pages and which of them is shown.

Does not belong here: what is on a page (`page_…`), where its knowledge comes from (`session`).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import streamlit as st

from app_streamlit import page_ask, page_status
from app_streamlit.rendering import show_style
from app_streamlit.session import knowledge_base

st.set_page_config(
    page_title="kb-platform", page_icon=str(Path(__file__).with_name("favicon.svg")), layout="centered"
)
show_style()

ask = st.Page(
    partial(page_ask.show, knowledge_base),
    title="Ask",
    icon=":material/search:",
    url_path="ask",
    default=True,
)
status = st.Page(
    partial(page_status.show, knowledge_base),
    title="Status",
    icon=":material/monitor_heart:",
    url_path="status",
)
st.navigation([ask, status], position="top").run()
