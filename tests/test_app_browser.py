"""The app in a real browser: what visitors do, and what hostile notes cannot do.

Needs Debian's chromium. Outside CI its absence skips these tests; in CI it fails them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from app_streamlit.inert import JOINER, visible
from kb_platform import sample_corpus
from kb_platform.home import configured_model, embedder, open_database
from kb_platform.settings import Settings
from kb_platform.stages.chunking import chunk_repository
from kb_platform.stages.embedding import embed_repositories
from kb_platform.stages.importing import import_files
from kb_platform.stages.indexing import complete_versions, ensure_version, index_repositories
from kb_platform.store.database import with_database
from kb_platform.store.embedded import EmbeddedServer

ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
# The repositories of the demonstration's questions; few, because every test run embeds them.
REPOSITORIES = ("pgvector__pgvector", "prometheus__prometheus", "strimzi__strimzi-kafka-operator")
RANGE_QUESTION = "What broke in Strimzi between 0.49.0 and 1.0.1?"


@pytest.fixture(scope="module")
def browser() -> Generator[Browser]:
    """Debian's chromium, without a network of its own."""
    path = shutil.which("chromium")
    if path is None:
        message = "no chromium; `apt-get install chromium` brings it"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield opened
        opened.close()


@dataclass
class Watched:
    """What a page did that nobody asked for."""

    outside: list[str] = field(default_factory=list[str])
    errors: list[str] = field(default_factory=list[str])
    dialogs: list[str] = field(default_factory=list[str])


@contextmanager
def visit(
    browser: Browser, url: str, *, width: int = 1000, scheme: str = "light"
) -> Iterator[tuple[Page, Watched]]:
    """A fresh visitor on a page. Requests that would leave the machine are noted and stopped."""
    base = re.match(r"https?://[^/]+", url)
    assert base is not None
    watched = Watched()
    context = browser.new_context(viewport={"width": width, "height": 1200}, color_scheme=scheme)  # pyright: ignore[reportArgumentType]
    page = context.new_page()

    def gate(route: Route) -> None:
        if route.request.url.startswith((base[0] + "/", "data:", "blob:")):
            route.continue_()
        else:
            watched.outside.append(route.request.url)
            route.abort()

    context.route("**/*", gate)
    page.on(
        "console", lambda said: watched.errors.append(f"{said.text} {said.location['url']}") if said.type == "error" else None,
    )  # fmt: skip
    page.on("pageerror", lambda error: watched.errors.append(str(error)))
    page.on("dialog", lambda dialog: (watched.dialogs.append(dialog.message), dialog.dismiss()))
    page.set_default_timeout(60_000)
    page.goto(url)
    try:
        yield page, watched
    finally:
        context.close()


@contextmanager
def serving(
    command: list[str], port: int, environment: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process of its own, from when it answers to the end."""
    with log.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, *command],
            env={key: value for key, value in os.environ.items() if not key.startswith("KB_")} | environment, stdout=written, stderr=subprocess.STDOUT, cwd=log.parent, start_new_session=True,
        )  # fmt: skip
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}/_stcore/health", process, log)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 90
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                if response.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the server did not come up: {log.read_text()}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def corpus(server: EmbeddedServer, migrated_template: str) -> Generator[str]:
    """The URL of a database with the indexed notes of three projects."""
    name = f"kb_app_{os.getpid()}"
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {migrated_template}")
    url = with_database(server.url("postgres"), name)
    settings = Settings(database_url=url)
    database = open_database(settings)
    files = [sample_corpus.releases_folder() / f"{repository}.jsonl" for repository in REPOSITORIES]
    names = import_files(database, files, settings).repositories
    for repository in names:
        chunk_repository(database, repository)
    ensure_version(database, lambda: configured_model(settings))
    embed_repositories(database, names, lambda model: embedder(settings, model))
    index_repositories(database, names)
    assert complete_versions(database).promoted is not None
    database.close()
    yield url
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@dataclass
class Served:
    url: str
    process: subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def app(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[Served]:
    """The app as `kb app` serves it."""
    folder = tmp_path_factory.mktemp("app")
    port = free_port()
    command = ["-c", "from kb_platform.cli import main; main()", "app", "--port", str(port)]
    environment = {"KB_DATABASE_URL": corpus, "KB_HOME": str(folder)}
    with serving(command, port, environment, folder / "app.log") as process:
        yield Served(f"http://127.0.0.1:{port}", process)


@pytest.mark.parametrize(
    "path", ["/", "/_stcore/health", "/_stcore/host-config", "/favicon.png", "/nothing/here.js"]
)
def test_every_response_carries_the_policy(app: Served, path: str) -> None:
    with urllib.request.urlopen(app.url + path, timeout=20) as response:
        headers, body = response.headers, response.read()
    [policy] = headers.get_all("Content-Security-Policy")
    parts = {part.split()[0]: part.split()[1:] for part in policy.split("; ")}
    assert parts["default-src"] == ["'none'"]
    assert parts["connect-src"] == ["'self'"]
    assert parts["img-src"] == ["'self'", "data:"]
    assert parts["frame-ancestors"] == ["'none'"]
    # No inline script but the one that Streamlit's page brings, by its hash.
    assert [source.split("-")[0] for source in parts["script-src"]] == ["'self'", "'sha256"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    if path == "/":
        assert body.count(b"<script>") == 1


def test_the_interface_for_programs_is_off(app: Served) -> None:
    request = urllib.request.Request(
        f"{app.url}/_stcore/agent/interact", b"{}", {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=20)
    refused.value.close()
    assert refused.value.code in (403, 404)


def test_an_app_that_is_told_to_end_takes_its_embedded_server_along(tmp_path: Path) -> None:
    # The path of a Unix socket holds about 100 bytes; pytest's own folders have long names.
    home = Path(tempfile.mkdtemp(prefix="kbt-"))
    held = EmbeddedServer(home)
    port = free_port()
    command = ["-c", "from kb_platform.cli import main; main()", "app", "--port", str(port)]
    with serving(command, port, {"KB_HOME": str(home)}, tmp_path / "app.log") as process:
        assert held.postmaster() is not None
    assert process.returncode == -signal.SIGTERM, (tmp_path / "app.log").read_text()
    assert held.postmaster() is None
    shutil.rmtree(home, ignore_errors=True)


def test_a_visitor_asks_and_sees_the_proof(app: Served, browser: Browser, tmp_path: Path) -> None:
    with visit(browser, app.url) as (page, watched):
        page.get_by_role("button", name=RANGE_QUESTION).click()
        first = page.locator("summary").first
        expect(first).to_contain_text("The operators run on Java 21")
        first.click()
        cited = page.locator('[class*="st-key-cited-"]')
        expect(cited).to_have_count(1)
        expect(cited).to_contain_text("stay at Java 11 through 0.51")
        expect(cited.locator("code").first).to_have_text("api")
        link = page.get_by_role("link", name="Open on GitHub")
        expect(link).to_have_attribute(
            "href", "https://github.com/strimzi/strimzi-kafka-operator/releases/tag/0.50.0"
        )
        assert "noreferrer" in (link.get_attribute("rel") or "")
        page.get_by_text("Whole release").click()
        expect(page.locator('[class*="st-key-around-"]').last).to_contain_text("Features")
        page.screenshot(path=tmp_path / "answer.png")
        assert (tmp_path / "answer.png").stat().st_size > 20_000
    assert watched == Watched()
    # Answering a question embeds it, and that must not need torch in this process.
    maps = Path(f"/proc/{app.process.pid}/maps")
    if maps.exists():
        assert "libtorch" not in maps.read_text()


def test_a_condition_is_removed_and_the_link_says_so(app: Served, browser: Browser) -> None:
    with visit(browser, f"{app.url}/?q={RANGE_QUESTION}") as (page, _):
        expect(page.locator("summary").first).to_contain_text("Java 21")
        page.get_by_role("button", name="changes of kind breaking").click()
        page.wait_for_url("**filters=**")
        expect(page.get_by_role("button", name="As the question says")).to_be_visible()
        expect(page.get_by_role("button", name="changes of kind breaking")).to_have_count(0)
        expect(page.locator('[data-testid="stMainBlockContainer"]')).to_contain_text(
            "Pods can use Linux user namespaces"
        )
        link = page.url
    with visit(browser, link) as (page, _):
        expect(page.get_by_role("button", name="As the question says")).to_be_visible()
        expect(page.locator('[data-testid="stMainBlockContainer"]')).to_contain_text(
            "Pods can use Linux user namespaces"
        )
        assert page.get_by_label("Your question").input_value() == RANGE_QUESTION


def test_the_keyboard_alone_is_enough_on_a_narrow_dark_screen(app: Served, browser: Browser) -> None:
    with visit(browser, app.url, width=360, scheme="dark") as (page, watched):
        page.get_by_label("Your question").focus()
        page.keyboard.type("Who won the football world cup in 1990?")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Not in the knowledge base")).to_be_visible()
        near = page.locator("summary").first
        near.focus()
        page.keyboard.press("Enter")
        expect(page.locator('[class*="st-key-cited-"]')).to_have_count(1)
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
        # The theme is that of the visitor's system.
        assert (
            page.evaluate("getComputedStyle(document.querySelector('.stApp')).backgroundColor")
            == "rgb(18, 22, 28)"
        )
    assert watched == Watched()


def test_the_policy_stops_what_a_renderer_would_let_through(app: Served, browser: Browser) -> None:
    """The second layer by itself: a script and an image that are in the page already."""
    with visit(browser, app.url) as (page, _):
        expect(page.get_by_label("Your question")).to_be_visible()
        blocked = page.evaluate(
            """async () => {
                const blocked = [];
                addEventListener('securitypolicyviolation', event => blocked.push(event.effectiveDirective));
                const script = document.createElement('script');
                script.textContent = 'window.__pwn = 1';
                const image = document.createElement('img');
                image.src = 'https://beacon.attacker.test/a.png';
                const frame = document.createElement('iframe');
                frame.src = 'https://beacon.attacker.test/';
                document.body.append(script, image, frame);
                await fetch('https://beacon.attacker.test/').catch(() => {});
                await new Promise(resolve => setTimeout(resolve, 500));
                return blocked.sort();
            }"""
        )
        assert blocked == ["connect-src", "frame-src", "img-src", "script-src-elem"]
        assert page.evaluate("window.__pwn") is None


# Every way in which the pages show foreign text, once for each payload; `raw` shows two without the renderer.
GALLERY = """
import json, sys
from pathlib import Path
import streamlit as st
from app_streamlit import rendering

payloads = json.loads(Path(sys.argv[1]).read_text("utf-8"))
rendering.show_style()
if "raw" in st.query_params:
    st.markdown(payloads["img-01"])
    st.markdown(payloads["dir-01"])
for name, payload in payloads.items():
    with st.container(key=f"text-{name}"):
        rendering.show_text(payload)
    rendering.show_text(rendering.strong(payload), rendering.mark(1), small=True)
    rendering.button(payload, key=f"button-{name}", on_click=print, args=())
    with rendering.unfolding(payload, rendering.mark(2), key=f"unfold-{name}", expanded=True):
        rendering.show_exact(payload)
    rendering.show_kind(payload)
    rendering.show_release_link(payload, key=f"link-{name}")
    body = f"# {payload}\\n\\n- {payload}\\n  - {payload}\\n\\n{payload}\\n\\n> {payload}\\n\\n**{payload}**\\n\\n| {payload} | b |\\n"
    start = body.index("- ")
    rendering.show_notes(body, (start, start + len(payload) + 2), key=name, whole=True)
st.caption("all shown")
"""


@pytest.fixture
def gallery(shared_data: Path, tmp_path: Path) -> Generator[tuple[str, dict[str, str]]]:
    """A page of all attacks, served by Streamlit alone: without the policy, only the renderer stands in their way."""
    attacks = [json.loads(line) for line in (shared_data / "attacks.jsonl").read_text("utf-8").splitlines()]
    payloads = {attack["id"]: attack["payload"] for attack in attacks}
    payloads["sto-05"] = "> " * 2_000 + "deep"
    (tmp_path / "payloads.json").write_text(json.dumps(payloads), "utf-8")
    (tmp_path / "gallery.py").write_text(GALLERY, "utf-8")
    port = free_port()
    command = [
        "-m", "streamlit", "run", str(tmp_path / "gallery.py"), "--server.headless", "true", "--server.port", str(port),
        "--server.address", "127.0.0.1", "--browser.gatherUsageStats", "false", "--server.fileWatcherType", "none",
        "--", str(tmp_path / "payloads.json"),
    ]  # fmt: skip
    with serving(command, port, {}, tmp_path / "gallery.log"):
        yield f"http://127.0.0.1:{port}", payloads


def test_hostile_notes_do_nothing_in_a_browser(
    gallery: tuple[str, dict[str, str]], browser: Browser, tmp_path: Path
) -> None:
    url, payloads = gallery
    with visit(browser, url) as (page, watched):
        settle(page)
        count = counting(page)
        assert page.evaluate("window.__pwn") is None
        assert page.locator("[data-testid=stException]").count() == 0, page.locator(
            "[data-testid=stException]"
        ).first.inner_text()
        for what in (
            "img",
            "iframe",
            "form",
            "input",
            "style",
            "script",
            "object",
            "svg image",
            "math",
            "audio",
            "video",
            ".katex",
        ):
            assert count(what) == 0, what
        assert count("[style*=fixed], [onclick], [onerror]") == 0
        # Icons and colours of the app's own: none came out of a text.
        assert count("[data-testid=stMarkdownContainer] [role=img]") == 0
        assert count(".stMarkdownColoredBackground, .stMarkdownColoredText, .stMarkdownShimmer") == 0
        hosts = page.evaluate(
            "[...document.querySelectorAll('.stMain a')].map(a => new URL(a.href).protocol + new URL(a.href).host)"
        )
        assert set(hosts) <= {"https:github.com", "https:attacker.test", "https:beacon.attacker.test"}
        for name, payload in payloads.items():
            said = page.locator(f".st-key-text-{name}").inner_text().replace(JOINER, "")
            assert " ".join(said.split()) == " ".join(visible(payload).split()), name
    assert watched.outside == []
    assert watched.dialogs == []


def test_the_same_checks_see_what_the_renderer_prevents(
    gallery: tuple[str, dict[str, str]], browser: Browser
) -> None:
    with visit(browser, f"{gallery[0]}/?raw=1") as (page, watched):
        settle(page)
        count = counting(page)
        assert count("img") > 0
        assert count(".stMarkdownColoredBackground") > 0
        assert count("[data-testid=stMarkdownContainer] [role=img]") > 0
    assert any("beacon.attacker.test" in address for address in watched.outside)


def settle(page: Page) -> None:
    """Wait until everything is there, what Streamlit loads late (pictures for emoji, mathematics) included."""
    expect(page.get_by_text("all shown")).to_be_visible()
    expect(page.locator("[data-testid=stSkeleton]")).to_have_count(0)
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(1_000)


def counting(page: Page) -> Callable[[str], int]:
    return lambda what: page.locator(f".stMain :is({what})").count()
