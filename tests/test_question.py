"""Questions about projects of every kind: what is asked, of which repository, versions and time.

The repositories and tags are made up in the manner of real projects; the shared golden questions are
measured by benchmarks/question_understanding.py, and a floor is held here.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kb_platform.retrieval.aliases import aliases_from_bodies
from kb_platform.retrieval.question import Intent, KnownRepository, Question, Understanding
from kb_platform.retrieval.spelling import distance, is_slip
from kb_platform.text.kinds import Kind

TODAY = date(2024, 9, 18)
KNOWN = [
    KnownRepository(name, tuple(tags.split()))
    for name, tags in {
        "kubernetes/kubernetes": " ".join(
            f"v1.{minor}.{patch}" for minor in range(27, 32) for patch in range(6)
        ),
        "facebook/react": "v17.0.0 v17.0.2 v18.0.0 v18.2.0 v18.3.1 v19.0.0-rc.1 v19.0.0 v19.1.0",
        "vitejs/vite": "v4.5.0 v5.0.0 v5.0.1 v5.1.0 v5.2.0 v6.0.0-beta.1 v6.0.0 create-vite@5.0.0 create-vite@5.1.0",
        "numpy/numpy": "v1.25.0 v1.26.0 v1.26.4 v2.0.0rc1 v2.0.0 v2.1.0",
        "psf/requests": "v2.30.0 v2.31.0 v2.32.0 v2.32.3",
        "tokio-rs/tokio": "tokio-1.36.0 tokio-1.37.0 tokio-1.38.0",
        "grafana/grafana": "v10.0.0 v10.4.0 v11.0.0 v11.1.0",
        "hashicorp/terraform": "v1.7.0 v1.8.0 v1.9.0-beta1 v1.9.0",
        "vuejs/core": "v3.3.0 v3.4.0 v3.4.1",
        "sveltejs/kit": "@sveltejs/kit@2.4.0 @sveltejs/kit@2.5.0 @sveltejs/adapter-node@5.0.0 @sveltejs/adapter-node@5.1.0",
        "redis/redis-py": "v5.0.0 v5.0.1 v5.1.0",
        "encode/httpx": "0.26.0 0.27.0 0.27.2 0.28.0",
        "projectdiscovery/httpx": "v1.6.0 v1.6.1 v1.6.9",
        "openai/openai-python": "v1.30.0 v1.31.0",
        "prometheus-operator/prometheus-operator": "v0.73.0 v0.74.0",
        "oven-sh/bun": "bun-v1.0.0 bun-v1.1.0 bun-v1.1.1",
        "astral-sh/uv": "0.3.0 0.4.0 0.4.1 0.5.0",
        "home-assistant/core": "2023.12.0 2024.1.0 2024.1.1 2024.2.0b1 2024.2.0",
        "ggml-org/llama.cpp": "b3000 b3001 b3100",
        "scikit-learn/scikit-learn": "1.4.0 1.4.1 1.5.0",
        "postgres/postgres": "REL_15_0 REL_16_0 REL_16_1 REL_16_2 REL_17_BETA1",
        "apache/airflow": "2.8.0 2.9.0 2.9.1 helm-chart/1.13.0 helm-chart/1.14.0",
        "vercel/ai": "ai@4.0.0 ai@4.1.0 ai@5.0.0-beta.1 ai@5.0.0 @ai-sdk/openai@1.0.0",
        "simonw/llm": "0.20 0.21 0.22a0 0.22",
        "timescale/timescaledb": "2.14.0 2.15.0",
        "strimzi/strimzi-kafka-operator": "0.40.0 0.41.0",
        "expressjs/express": "4.18.0 4.19.0 v5.0.0-beta.1 v5.0.0",
    }.items()
]
UNDERSTANDING = Understanding(KNOWN, TODAY)


@dataclass
class Case:
    """A question and what it asks for: filters by name, besides the repositories."""

    text: str
    repositories: str = ""
    intent: Intent = Intent.LOOKUP
    topic: str | None = None
    """None: not looked at."""
    filters: dict[str, Any] = field(default_factory=dict[str, Any])


def changes(text: str, repository: str, **filters: Any) -> Case:
    return Case(text, repository, Intent.CHANGES, "", filters)


def releases(text: str, repository: str, **filters: Any) -> Case:
    return Case(text, repository, Intent.RELEASES, "", filters)


def lookup(text: str, repository: str, topic: str | None = None, **filters: Any) -> Case:
    return Case(text, repository, Intent.LOOKUP, topic, filters)


def other(intent: Intent, text: str, repository: str, **filters: Any) -> Case:
    return Case(text, repository, intent, "", filters)


REACT, VITE, UV, K8S = "facebook/react", "vitejs/vite", "astral-sh/uv", "kubernetes/kubernetes"
NUMPY, GRAFANA, TERRAFORM = "numpy/numpy", "grafana/grafana", "hashicorp/terraform"

VERSIONS = [
    changes("What changed in Kubernetes between 1.28 and 1.30?", K8S, after_version="v1.28.0", upto_version="v1.30.0"),
    changes("What breaks if I upgrade React from 17 to 18?", REACT, after_version="v17.0.0", upto_version="v18.0.0", kinds=["breaking"]),
    changes("Upgrading from Vite 4.5 to Vite 6, what was removed?", VITE, package="", after_version="v4.5.0", upto_version="v6.0.0", kinds=["removal"]),
    changes("We're on kubernetes v1.28.3 and want to go to v1.30.1, what breaking changes should we expect?", K8S, after_version="v1.28.3", upto_version="v1.30.1", kinds=["breaking"]),
    changes("uv 0.3.0..0.4.1 changes", UV, after_version="0.3.0", upto_version="0.4.1"),
    changes("uv 0.3.0 -> 0.5.0: what broke?", UV, after_version="0.3.0", upto_version="0.5.0", kinds=["breaking"]),
    changes("changes from uv 0.3.0 through 0.4.1", UV, after_version="0.3.0", upto_version="0.4.1"),
    changes("uv >= 0.4.0 breaking changes", UV, from_version="0.4.0", kinds=["breaking"]),
    changes("Is there a security fix in uv after 0.4.0?", UV, after_version="0.4.0", kinds=["security"]),
    changes("What was deprecated or removed in numpy since 1.26?", NUMPY, after_version="v1.26.0", kinds=["deprecation", "removal"]),
    changes("What's new in Vite 5.1?", VITE, versions=["v5.1.0"]),
    changes("What changed in version 1.26.4 of numpy?", NUMPY, versions=["v1.26.4"]),
    changes("What breaking changes are in numpy 2.0?", NUMPY, from_version="2.0.dev0", before_version="2.1.dev0", kinds=["breaking"]),
    changes("What changed in Kubernetes in 1.29.x?", K8S, from_version="1.29.dev0", before_version="1.30.dev0"),
    changes("Any deprecations in Grafana 11?", GRAFANA, from_version="11.dev0", before_version="12.dev0", kinds=["deprecation"]),
    changes("Grafana v10.0.0 to v11.1.0 security fixes", GRAFANA, after_version="v10.0.0", upto_version="v11.1.0", kinds=["security"]),
    changes("Show me react's changelog since 18.2", REACT, after_version="v18.2.0"),
    changes("facebook/react v18.3.1", REACT, versions=["v18.3.1"]),
    changes("What changed in vitejs/vite@5.2.0?", VITE, versions=["v5.2.0"]),
    changes("https://github.com/vitejs/vite/releases/tag/v5.1.0 what changed", VITE, versions=["v5.1.0"]),
    changes("What changed between REL_16_0 and REL_16_2?", "postgres/postgres", after_version="REL_16_0", upto_version="REL_16_2"),
    changes("What changed in Postgres 16.2?", "postgres/postgres", versions=["REL_16_2"]),
    changes("What changed in llama.cpp since b3000?", "ggml-org/llama.cpp", after_version="b3000"),
    changes("what's new in the airflow helm chart since 1.13?", "apache/airflow", package="helm-chart", after_version="helm-chart/1.13.0"),
    changes("What changed in the ai sdk from 4.0 to 5.0?", "vercel/ai", package="ai", after_version="ai@4.0.0", upto_version="ai@5.0.0"),
    changes("What broke in Home Assistant 2024.2?", "home-assistant/core", from_version="2024.2.dev0", before_version="2024.3.dev0", kinds=["breaking"]),
    changes("What changed in the latest Terraform release?", TERRAFORM, versions=["v1.9.0"]),
    changes("Which stable React releases after v18.0.0 up to and including v19.0.0 (by version number) mention a CVE?", REACT, after_version="v18.0.0", upto_version="v19.0.0", kinds=["security"], prerelease=False),
    changes("Which stable React releases later than v17.0.2 and not later than v19.0.0 have breaking changes in their notes?", REACT, after_version="v17.0.2", upto_version="v19.0.0", kinds=["breaking"], prerelease=False),
    changes("What breaking changes were introduced in React between v17.0.2 and v19.0.0 (after v17.0.2, up to and including v19.0.0, stable releases by version number)?", REACT, after_version="v17.0.2", upto_version="v19.0.0", kinds=["breaking"], prerelease=False),
    releases("List all create-vite releases since 5.0.0", VITE, package="create-vite", from_version="create-vite@5.0.0"),
    releases("Which adapter-node versions came out after 5.0.0?", "sveltejs/kit", package="@sveltejs/adapter-node", after_version="@sveltejs/adapter-node@5.0.0"),
    releases("Which uv releases came out after 0.3.0 but before 0.5.0?", UV, after_version="0.3.0", before_version="0.5.0"),
    releases("uv releases newer than 0.4.0", UV, after_version="0.4.0"),
    releases("uv releases 0.4.0 and later", UV, from_version="0.4.0"),
    releases("uv releases until 0.4", UV, upto_version="0.4.0"),
    releases("uv releases older than 0.4.1", UV, before_version="0.4.1"),
    releases("all numpy releases between 1.25.0 and 2.0.0 inclusive", NUMPY, from_version="v1.25.0", upto_version="v2.0.0"),
    releases("the last three terraform releases", TERRAFORM, versions=["v1.9.0", "v1.8.0", "v1.7.0"]),
    releases("When was React 18.2.0 released?", REACT, versions=["v18.2.0"]),
    lookup("Which Vite 5.x releases fixed CSS bugs?", VITE, "fixed CSS bugs", package="", from_version="5.dev0", before_version="6.dev0"),
    lookup("Since 18.0, which React release fixed hydration mismatches?", REACT, "fixed hydration mismatches", after_version="v18.0.0"),
    lookup("What changed about the resolver in uv between 0.3.0 and 0.5.0?", UV, "changed about the resolver", after_version="0.3.0", upto_version="0.5.0"),
    lookup("Which of the last two uv releases fixed musl?", UV, "fixed musl", versions=["0.5.0", "0.4.1"]),
    other(Intent.LATEST, "What is the latest version of Terraform?", TERRAFORM, versions=["v1.9.0"]),
    other(Intent.LATEST, "latest vite", VITE, versions=["v6.0.0"]),
    other(Intent.LATEST, "What is the last React release with breaking changes?", REACT, kinds=["breaking"]),
    other(Intent.FIRST, "What is the oldest React release?", REACT),
    other(Intent.COUNT, "How many stable Grafana versions since v10.4.0?", GRAFANA, from_version="v10.4.0", prerelease=False),
    other(Intent.COUNT, "how many breaking changes are in vite 6.0.0?", VITE, versions=["v6.0.0"], kinds=["breaking"]),
]  # fmt: skip

DATES = [
    releases("Which React versions, pre-releases included, were published in December 2023 (UTC)?", REACT, published_from="2023-12-01T00:00:00Z", published_before="2024-01-01T00:00:00Z"),
    releases("Which Home Assistant versions were published between December 2023 and February 2024?", "home-assistant/core", published_from="2023-12-01T00:00:00Z", published_before="2024-03-01T00:00:00Z"),
    releases("What did requests release in the first half of 2023?", "psf/requests", published_from="2023-01-01T00:00:00Z", published_before="2023-07-01T00:00:00Z"),
    releases("what shipped in react last quarter?", REACT, published_from="2024-04-01T00:00:00Z", published_before="2024-07-01T00:00:00Z"),
    releases("Which AI SDK versions came out last month?", "vercel/ai", published_from="2024-08-01T00:00:00Z", published_before="2024-09-01T00:00:00Z"),
    releases("Which pre-releases of React were published in 2024?", REACT, published_from="2024-01-01T00:00:00Z", published_before="2025-01-01T00:00:00Z", prerelease=True),
    releases("grafana releases from March 2024 on", GRAFANA, published_from="2024-03-01T00:00:00Z"),
    changes("summarise grafana changes since January 2024", GRAFANA, published_from="2024-01-01T00:00:00Z"),
    other(Intent.COUNT, "How many Grafana releases were published in 2024?", GRAFANA, published_from="2024-01-01T00:00:00Z", published_before="2025-01-01T00:00:00Z"),
    other(Intent.LATEST, "What was the latest release of Vite in 2023?", VITE, published_from="2023-01-01T00:00:00Z", published_before="2024-01-01T00:00:00Z"),
    lookup("Which grafana releases in 2023 fixed data corruption?", GRAFANA, "fixed data corruption", published_from="2023-01-01T00:00:00Z", published_before="2024-01-01T00:00:00Z"),
]  # fmt: skip

NAMES = [
    lookup("Which Kubernetes release graduated sidecar containers to stable?", K8S, "graduated sidecar containers to stable"),
    lookup("Which k8s release removed dockershim?", K8S, "removed dockershim"),
    lookup("Which requests version dropped Python 3.7 support?", "psf/requests", "dropped Python 3.7 support"),
    lookup("In which version of Requests did the proxies bug get fixed?", "psf/requests", "proxies bug"),
    lookup("Which Vue release added defineModel?", "vuejs/core", "added defineModel"),
    lookup("When did SvelteKit add reroute?", "sveltejs/kit", "add reroute"),
    lookup("In which redis-py version did cluster pipelines get fixed?", "redis/redis-py", "cluster pipelines"),
    lookup("Which OpenAI Python release added structured outputs?", "openai/openai-python"),
    lookup("Does the openai python SDK support streaming?", "openai/openai-python"),
    lookup("Which Prometheus Operator release added ScrapeConfig?", "prometheus-operator/prometheus-operator"),
    lookup("When did Bun add S3 support?", "oven-sh/bun", "add S3 support"),
    lookup("Which scikit learn release added HDBSCAN?", "scikit-learn/scikit-learn", "added HDBSCAN"),
    lookup("When did the AI SDK get tool approval?", "vercel/ai", "tool approval"),
    lookup("Which LLM (the simonw CLI) release added embeddings?", "simonw/llm", "added embeddings"),
    lookup("Which Strimzi release added KRaft?", "strimzi/strimzi-kafka-operator", "added KRaft"),
    lookup("Which strimzi kafka operator release added KRaft?", "strimzi/strimzi-kafka-operator"),
    lookup("Which Timescale DB release added hypercore?", "timescale/timescaledb"),
    lookup("Which release of the Terraform CLI removed the workspace alias?", TERRAFORM, "removed the workspace alias"),
    lookup("We keep running into this with Express: memory leak in the router. Which release has the fix?", "expressjs/express", "memory leak in the router"),
    lookup("In which version of React did the React devtools hook first appear?", REACT, "React devtools hook"),
    lookup("Which scikit-learn release supports numpy 2.0?", "scikit-learn/scikit-learn", "supports numpy 2.0"),
    lookup("Which projectdiscovery httpx release added screenshots?", "projectdiscovery/httpx"),
    lookup("Which Exprss version removed app.del?", "expressjs/express"),
    lookup("Which kubernets release added Gateway API?", K8S),
    lookup("Which scikit-laern release added HDBSCAN?", "scikit-learn/scikit-learn"),
    lookup("Which pre-release React versions added actions?", REACT, "added actions", prerelease=True),
    lookup("In The Latest React Release, what fixed hydration?", REACT, versions=["v19.1.0"]),
    lookup("When did react and vue get faster?", "facebook/react vuejs/core"),
]  # fmt: skip

# A filter on any repository would make these unanswerable, or answer another question.
NO_REPOSITORY = [
    "Did requests to the API get retried automatically in some release?",
    "How do I configure retries in requests?",
    "Which LLM provider is the default?",
    "Which AI models were added?",
    "Is there an AI that can read logs?",
    "Which Redis release added client-side caching?",
    "Which Prometheus release added native histograms?",
    "Which Terraform provider release added S3 tables?",
    "Which React Native release added Hermes?",
    "Which React Router version added loaders?",
    "Which Grafana Loki release added bloom filters?",
    "Which Kubernetes Dashboard release dropped Heapster?",
    "Which version of React Native added Hermes?",
    "In which version of react native were symlinks supported?",
    "Which httpie release fixed proxies?",
    "Which Reacts release is it?",
    "Which uvicorn release added websockets?",
    "Which numba release supports numpy 2.0?",
    "When did Rails drop support for react 17?",
    "What changed in Angular between 16 and 17?",
    "Which Pydantic AI release fixed agents?",
    "Which release fixed CVE-2024-35195?",
    "Which axum release improved compatibility with legacy numpy versions?",
    "What is the first axum version with a fix for numpy 2.0 arrays?",
    "Which Kong release fixed racey redis-py's transport?",
    "Which Pandas release is faster: in numpy between 1.25 and 1.26?",
    "text/vite and core/express are paths",
    "",
]


@pytest.mark.parametrize("case", VERSIONS + DATES + NAMES, ids=lambda case: case.text[:60])
def test_what_a_question_asks(case: Case) -> None:
    question = UNDERSTANDING.understand(case.text)
    understood = question.filters.as_json()
    assert sorted(understood.pop("repositories", [])) == sorted(case.repositories.split())
    assert understood == case.filters
    assert question.intent is case.intent
    if case.topic is not None:
        assert question.topic == case.topic


@pytest.mark.parametrize("text", NO_REPOSITORY)
def test_in_doubt_no_repository(text: str) -> None:
    assert UNDERSTANDING.understand(text).filters.repositories == ()


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("Which Traefik release fixed a websocket bug?", ("Traefik",)),
        ("When did Rails drop Ruby 2.7?", ("Rails",)),
        ("Which React Native release added Hermes?", ("React Native",)),
        ("What changed in Angular between 16 and 17?", ("Angular",)),
        ("We keep running into this with Kong: 502s. Which release has the fix?", ("Kong",)),
        ("Which Redis release added client-side caching?", ()),
        ("Which release fixed it?", ()),
    ],
)
def test_projects_that_are_not_known_are_named(text: str, unknown: tuple[str, ...]) -> None:
    assert UNDERSTANDING.understand(text).unknown_projects == unknown


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("What changed in uv 9.9.9?", ("9.9.9",)),
        ("What broke in uv between 7.1.0 and 7.5.0?", ("7.1.0", "7.5.0")),
        ("What broke in uv between 0.3.0 and 0.5.0?", ()),
    ],
)
def test_versions_that_do_not_exist_are_named(text: str, unknown: tuple[str, ...]) -> None:
    assert UNDERSTANDING.understand(text).unknown_versions == unknown


def test_a_name_that_two_repositories_bear_is_ambiguous() -> None:
    question = UNDERSTANDING.understand("Which httpx release added HTTP/2 push?")
    both = ("encode/httpx", "projectdiscovery/httpx")
    assert question.ambiguous == (both,)
    assert sorted(question.filters.repositories) == sorted(both)
    assert any("share a name" in note for note in question.notes)


@pytest.mark.parametrize(
    "text",
    ["What changed in httpx between 0.26.0 and 0.27.2?", "Which encode httpx release added HTTP/2 push?"],
)
def test_versions_and_owners_tell_namesakes_apart(text: str) -> None:
    question = UNDERSTANDING.understand(text)
    assert (question.filters.repositories, question.ambiguous) == (("encode/httpx",), ())


@pytest.mark.parametrize(
    "text",
    [
        "Which uv release fixed the crash introduced in 0.4.0?",
        "Which React release improved compatibility with mypy before 18.0?",
        "Which numpy release added support for Python 3.13 and GCC 14+?",
        "Which grafana release removed flags deprecated since 10.0?",
        "Which numpy release fixed dates before 1970?",
        "Which uv release uses the 2024 edition?",
        "Which React release may march on?",
        "Which uv release marked metrics as stable, and others as beta?",
        "Which is the latest numpy version that supports Python 3.8?",
    ],
)
def test_numbers_of_the_deed_are_no_filters(text: str) -> None:
    question = UNDERSTANDING.understand(text)
    assert set(question.filters.as_json()) == {"repositories"}
    assert question.intent is Intent.LOOKUP
    assert question.topic


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Which uv release fixed the musl build?", Kind.FIX),
        ("In which version of uv did musl builds get fixed?", Kind.FIX),
        ("What is the first uv version with a fix for removed caches?", Kind.FIX),
        ("When did uv remove the pip shim?", Kind.REMOVAL),
        ("When did uv drop wrong deprecation labels?", Kind.REMOVAL),
        ("Which uv release deprecated --legacy?", Kind.DEPRECATION),
        ("When did uv get a publish command?", Kind.FEATURE),
        ("In which version of uv did uv publish first appear?", Kind.FEATURE),
        ("Which uv releases mention CVE-2024-35195?", Kind.SECURITY),
        ("When did resolving get faster in uv?", Kind.PERFORMANCE),
        ("Which uv release respects drop-down files?", None),
        ("Which uv release skips undefined names for deleted files?", None),
    ],
)
def test_the_kind_of_a_deed_is_only_a_hint(text: str, kind: Kind | None) -> None:
    question = UNDERSTANDING.understand(text)
    assert question.kind_hint is kind
    assert question.filters.kinds == ()


def test_a_cve_in_general_must_be_mentioned() -> None:
    question = UNDERSTANDING.understand("Which grafana releases since v10.0.0 mention a CVE?")
    assert question.mentions == ("CVE-",)
    assert UNDERSTANDING.understand("Which grafana releases mention CVE-2024-1?").mentions == ()


def test_notes_say_how_the_question_was_read() -> None:
    question = UNDERSTANDING.understand(
        "What breaking changes were there in stable Vtie between 5.0 and 6.0?"
    )
    assert "after v5.0.0" in " ".join(
        Understanding(KNOWN, TODAY).understand("vite changes between 5.0 and 6.0").notes
    )
    notes = " ".join(UNDERSTANDING.understand("Which Exprss releases were published last month?").notes)
    assert "read “Exprss” as expressjs/express" in notes
    assert "“last month”: published from 2024-08-01 up to 2024-08-31 (UTC)" in notes
    assert question.text.startswith("What breaking changes")


def test_aliases_are_names() -> None:
    known = [*KNOWN, KnownRepository("acme/monolith", ("1.0.0", "1.1.0"), ("Road Runner",))]
    question = Understanding(known, TODAY).understand("Which Road Runner release added rockets?")
    assert question.filters.repositories == ("acme/monolith",)


HOSTILE = ["which ", "a ", "stable ", "1.2 ", "uv and ", "uv (", "release of the ", "..", "a-", "@", "between 0.3.0 ", "did a b c ",
           "March 2024 ", "x", "9", "Aa ", "version ", "upgrading ", "how many ", "(", "which stable a ", "\u00e9-"]  # fmt: skip


def test_hostile_texts_cost_no_more_than_long_ones() -> None:
    """A pattern that backtracks over the whole text takes seconds here; 8 s was seen for "stable " × 300."""
    started = time.perf_counter()
    for part in HOSTILE:
        UNDERSTANDING.understand("which " + part * (2_000 // len(part)))
    assert time.perf_counter() - started < 10


def test_what_follows_a_thousand_characters_is_searched_for_only() -> None:
    log = "panic: out of range " * 200
    question = UNDERSTANDING.understand(
        f"Which uv release fixed this? {log} in kubernetes between 1.28 and 1.30"
    )
    assert question.filters.as_json() == {"repositories": [UV]}
    assert len(question.topic) > 2_000


# -- a repository added a minute ago ----------------------------------------------------------------------

SYLLABLES = ["zor", "bax", "quil", "mek", "tov", "fyn", "drel", "oxa", "vim", "kub"]
NAMES_OF_PROJECTS = st.lists(st.sampled_from(SYLLABLES), min_size=2, max_size=3).map("".join)
NUMBERS = st.tuples(st.integers(0, 9), st.integers(0, 30), st.integers(0, 30))
WORDINGS = [
    "What changed in {name} between {low} and {high}?",
    "Which {name} releases later than {low} and not later than {high} have breaking changes?",
    "We are upgrading {name} from {low} to {high}. Which releases on the way list breaking changes?",
    "What breaking changes were introduced in {name} after {low} up to and including {high}?",
    "{name} {low}..{high} changes",
    "everything that changed from {name} {low} to {name} {high}",
]


@settings(max_examples=40)
@given(
    NAMES_OF_PROJECTS,
    NAMES_OF_PROJECTS,
    st.lists(NUMBERS, min_size=2, max_size=6, unique=True),
    st.sampled_from(WORDINGS),
    st.sampled_from(["", "v", "pkg@"]),
)
def test_a_new_repository_is_understood_at_once(
    owner: str, name: str, numbers: list[tuple[int, int, int]], wording: str, prefix: str
) -> None:
    tags = [prefix + ".".join(map(str, number)) for number in sorted(numbers)]
    understanding = Understanding([*KNOWN[5:7], KnownRepository(f"{owner}/{name}", tuple(tags))], TODAY)
    for low, high in ((tags[0], tags[-1]), (tags[0].removeprefix(prefix), tags[-1].removeprefix(prefix))):
        question = understanding.understand(wording.format(name=name.capitalize(), low=low, high=high))
        filters = question.filters
        assert filters.repositories == (f"{owner}/{name}",)
        assert (filters.after_version, filters.upto_version) == (tags[0], tags[-1])
        assert question.intent is Intent.CHANGES
    asked = understanding.understand(f"In which version of {name} did the frobnicator get fixed?")
    assert (asked.filters.repositories, asked.topic) == ((f"{owner}/{name}",), "frobnicator")


@given(
    st.text(max_size=300)
    | st.lists(
        st.sampled_from(
            [
                "uv",
                "vite",
                "React",
                "between",
                "and",
                "from",
                "1.28",
                "0.4.0",
                "v5",
                "2.x",
                "since",
                "May",
                "2024",
                "latest",
                "(the",
                "CLI)",
                "..",
                "->",
                ",",
            ]
        ),
        max_size=14,
    ).map(" ".join)
)
def test_any_text_is_understood_somehow(text: str) -> None:
    question = UNDERSTANDING.understand(text)
    assert question.text == text
    assert isinstance(question, Question)
    json.dumps(question.filters.as_json())


# -- aliases and spelling ---------------------------------------------------------------------------------


def test_aliases_from_bodies() -> None:
    bodies = [f"# Vue 3.{minor}.0\nThe Core Engine and Vue SDK" for minor in range(6)]
    assert aliases_from_bodies("vuejs/core", bodies) == ("Core Engine", "Vue", "Vue SDK")
    sdk = [f"The AI SDK now does {number}. An LLM SDK does not." for number in range(4)]
    assert aliases_from_bodies("vercel/ai", sdk) == ("AI SDK",)
    assert aliases_from_bodies("vercel/ai", ["AI SDK once", "nothing"]) == ()


@pytest.mark.parametrize(
    ("written", "meant", "slip"),
    [
        ("kubernets", "kubernetes", True),
        ("exprss", "express", True),
        ("atsro", "astro", True),
        ("astra", "astro", False),
        ("preact", "react", False),
        ("datasets", "datasette", False),
        ("psycopg2", "psycopg", False),
        ("vite", "vita", False),
        ("nextjs", "nestjs", False),
        ("prometeus", "prometheus", True),
        ("opentelemtry-pyhton", "opentelemetry-python", True),
        ("numpy", "numpy", False),
    ],
)
def test_slips(written: str, meant: str, slip: bool) -> None:
    assert is_slip(written, meant) is slip


@given(st.text("abc", max_size=7), st.text("abc", max_size=7))
def test_distance_is_symmetric_and_bounded(first: str, second: str) -> None:
    found = distance(first, second)
    assert found == distance(second, first)
    assert abs(len(first) - len(second)) <= found <= max(len(first), len(second))
    assert (found == 0) == (first == second)


# -- the shared questions ---------------------------------------------------------------------------------


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_golden_questions_are_understood(shared_data: Path) -> None:
    """Repositories, ranges and dates of all golden questions; dates by the releases that the filters admit."""
    of_repository = {
        path.stem.replace("__", "/"): read(path)
        for path in sorted((shared_data / "releases").glob("*.jsonl"))
    }
    known = [
        KnownRepository(name, tuple(r["tag_name"] for r in records))
        for name, records in of_repository.items()
    ]
    understanding = Understanding(known, date(2026, 11, 21))
    wrong: list[str] = []
    for golden in (
        record for path in sorted((shared_data / "golden").glob("*.jsonl")) for record in read(path)
    ):
        question = understanding.understand(golden["question"])
        filters = question.filters
        right = filters.repositories == (golden["repo"],)
        if golden["kind"] == "range_dates":
            admitted = [
                release["tag_name"]
                for release in of_repository[golden["repo"]]
                if filters.admits(
                    repository=golden["repo"],
                    tag=release["tag_name"],
                    published_at=datetime.fromisoformat(release["published_at"]),
                    prerelease=release["prerelease"],
                )
            ]
            right = (
                right
                and sorted(admitted) == sorted(golden["expected_tags"])
                and question.intent is Intent.RELEASES
            )
        elif golden["kind"].startswith("range"):
            right = right and [filters.after_version, filters.upto_version] == golden["range"]
            right = right and (filters.prerelease, question.intent, question.topic) == (
                False,
                Intent.CHANGES,
                "",
            )
        else:
            right = right and set(filters.as_json()) == {"repositories"} and bool(question.topic)
        if not right:
            wrong.append(golden["question"])
    assert wrong == []
