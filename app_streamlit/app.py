"""The app as an ASGI application; `streamlit run` and uvicorn start it from here.

`pages.py` is what runs for each visitor. This module runs once and adds the headers to what the server sends.
"""

from __future__ import annotations

from pathlib import Path

from starlette.middleware import Middleware
from streamlit.starlette import App

from app_streamlit.rendering import show_failure
from app_streamlit.security_headers import SecurityHeaders
from app_streamlit.session import open_while_serving

app = App(
    Path(__file__).with_name("pages.py"),
    lifespan=open_while_serving,
    middleware=[Middleware(SecurityHeaders)],
    on_script_error=show_failure,
)
