"""Every setting of kb-platform, its default and its environment variable.

This is the only module that reads the environment. A setting `database_url` is the variable `KB_DATABASE_URL`.
`docs/settings.md` documents each one; a test compares the two. Secrets are `SecretStr`: they print as stars.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from kb_platform.errors import SettingsError

HOME_FOLDER = ".kb"
# Kafka takes these characters and 249 of them; room is left for the name of a dead-letter topic.
TOPIC_NAME = r"^[A-Za-z0-9._-]{1,240}$"


class Settings(BaseSettings):
    """Settings as read from the environment once, at the start of a process."""

    model_config = SettingsConfigDict(env_prefix="KB_", frozen=True, extra="ignore")

    home: Path | None = Field(
        default=None,
        description="Folder of all local state. Unset: the nearest `.kb` folder at or above the working "
        "directory, else `~/.kb`.",
    )
    database_url: str | None = Field(
        default=None,
        description="PostgreSQL (16 or later, with pgvector 0.8 or later) that holds the knowledge base. Unset: "
        "an embedded server in the home folder.",
    )
    dagster_database_url: str | None = Field(
        default=None,
        description="PostgreSQL database for Dagster's own history. Unset: a database named after the "
        "knowledge base's with `_dagster` behind it, on the same server.",
    )
    database_pool_size: int = Field(
        default=8, ge=1, le=200, description="Connections that one process keeps at most."
    )
    github_api_url: str = Field(
        default="https://api.github.com",
        description="Root of GitHub's REST API; of GitHub Enterprise Server `https://HOST/api/v3`.",
    )
    github_token: SecretStr | None = Field(
        default=None, description="Token for GitHub, or several with commas between; each has its own budget."
    )
    github_app_id: str | None = Field(
        default=None,
        description="Id (or client id) of a GitHub App to ask as; each installation has its own budget.",
    )
    github_app_private_key: SecretStr | None = Field(
        default=None, description="The App's private key, PEM text."
    )
    github_app_private_key_file: Path | None = Field(
        default=None, description="File that holds the App's private key, in the place of the text."
    )
    gitea_tokens: dict[str, SecretStr] = Field(
        default_factory=dict[str, SecretStr],
        description='Tokens for Gitea and Forgejo by host, as JSON: `{"codeberg.org": "…"}`.',
    )
    poll_interval_s: float = Field(
        default=300.0, ge=1, description="Seconds between two polls of a watched repository."
    )
    poll_session_s: float = Field(
        default=600.0,
        ge=0,
        description="Seconds that one polling run goes on before it makes way for the next; 0: one round.",
    )
    poll_timeout_s: float = Field(
        default=20.0, gt=0, description="Seconds that a forge may be silent before a request is given up."
    )
    kafka_bootstrap_servers: str | None = Field(
        default=None, description="Brokers to begin with, `HOST:PORT,…`. Unset: Kafka is off."
    )
    kafka_config: SecretStr | None = Field(
        default=None,
        description="Further librdkafka settings for every client, as a JSON object: "
        '`{"security.protocol": "SASL_SSL", …}`. What keeps records safe is not to be set.',
    )
    kafka_group: str = Field(
        default="kb-platform",
        min_length=1,
        max_length=200,
        description="Consumer group: each keeps its own positions, and shows them to lag tools.",
    )
    kafka_release_topic: str = Field(
        default="kb.releases",
        pattern=TOPIC_NAME,
        description="Topic of release events. Its dead-letter topic is named after it, with `.dlq` behind.",
    )
    kafka_document_topic: str = Field(
        default="kb.documents",
        pattern=TOPIC_NAME,
        description="Topic of document events; dead letters likewise.",
    )
    kafka_partitions: int = Field(
        default=3, ge=1, le=10_000, description="Partitions of topics that `kb kafka init` makes."
    )
    kafka_replication: int = Field(
        default=3,
        ge=1,
        le=16,
        description="Replicas of topics that `kb kafka init` makes; fewer where there are fewer brokers.",
    )
    kafka_retention_days: int = Field(
        default=30, ge=1, description="Days that topics made by `kb kafka init` keep records."
    )
    kafka_timeout_s: float = Field(
        default=10.0,
        gt=0,
        le=60,
        description="Seconds without an answer after which brokers count as unreachable.",
    )
    kafka_batch_records: int = Field(
        default=4_000, ge=1, le=100_000, description="Records landed in one transaction at most."
    )
    kafka_batch_bytes: int = Field(
        default=12 * 1_048_576,
        ge=1,
        le=256 * 1_048_576,
        description="Bytes landed in one transaction at most; a single larger record goes alone.",
    )
    kafka_run_records: int = Field(
        default=2_000_000, ge=1, description="Records after which a landing run makes way for the next."
    )
    kafka_run_bytes: int = Field(
        default=8 * 1_073_741_824, ge=1, description="Bytes after which a landing run makes way for the next."
    )
    kafka_run_s: float = Field(
        default=600.0, ge=0, description="Seconds after which a landing run makes way for the next."
    )
    kafka_linger_s: float = Field(
        default=60.0, ge=0, description="Seconds that a landing run waits for more once it has landed all."
    )
    webhook_secret: SecretStr | None = Field(
        default=None,
        description="Secret of GitHub's webhooks, or several with commas between. Unset: none are received.",
    )
    webhook_host: str = Field(default="127.0.0.1", description="Address webhooks are received at.")
    webhook_port: int = Field(default=8600, ge=1, le=65_535, description="Port webhooks are received at.")
    webhook_queue: int = Field(
        default=1_000,
        ge=1,
        le=100_000,
        description="Webhooks that wait for the brokers at most; further ones are answered with 503.",
    )
    alert_webhook_url: SecretStr | None = Field(
        default=None,
        description="Where alerts are posted, as Slack takes them. Unset: only log and status page.",
    )
    history_days: int = Field(
        default=30,
        ge=1,
        description="Days that Dagster's runs and their events are kept, except what tells the state of an asset.",
    )
    embedding_model: str = Field(
        default="sentence-transformers/all-MiniLM-L6-v2",
        description="Model of the first index version and the default of `kb index build`: a Hugging Face id, a "
        "folder, `tei:URL` or `openai:MODEL@URL`.",
    )
    embedding_device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where local models run."
    )
    embedding_threads: int | None = Field(
        default=None, ge=1, le=256, description="Threads of a local model on CPU. Unset: all cores."
    )
    embedding_token_budget: int | None = Field(
        default=None,
        ge=256,
        description="Tokens in one batch of a local model. Unset: 2,048 on a CPU, 32,768 on a GPU.",
    )
    embedding_slice: int = Field(
        default=2048,
        ge=1,
        le=100_000,
        description="Texts embedded between two commits; a killed run repeats one slice at most.",
    )
    embedding_api_key: SecretStr | None = Field(
        default=None, description="Key for a remote embeddings server."
    )
    embedding_concurrency: int = Field(
        default=4, ge=1, le=64, description="Requests under way at once to a remote embeddings server."
    )
    embedding_timeout_s: float = Field(
        default=30.0, gt=0, description="Seconds one request to a remote embeddings server may take."
    )
    max_body_bytes: int = Field(
        default=1_048_576,
        ge=1_024,
        le=64 * 1_048_576,
        description="Release notes longer than this (UTF-8 bytes) are quarantined.",
    )
    max_record_bytes: int = Field(
        default=16 * 1_048_576,
        ge=65_536,
        le=512 * 1_048_576,
        description="One record of an import longer than this (bytes) is quarantined; its first bytes are kept.",
    )
    exact_scan_rows: int = Field(
        default=50_000,
        ge=0,
        description="At most this many rows in scope are searched exactly; more go through the HNSW index.",
    )
    stale_after_hours: float = Field(
        default=24.0,
        gt=0,
        description="A watched repository not verified for this many hours is reported as stale.",
    )
    app_host: str = Field(default="127.0.0.1", description="Address the app listens on.")
    app_port: int = Field(default=8501, ge=1, le=65_535, description="Port the app listens on.")
    dagster_host: str = Field(default="127.0.0.1", description="Address Dagster's UI listens on.")
    dagster_port: int = Field(default=3000, ge=1, le=65_535, description="Port Dagster's UI listens on.")
    kubernetes: bool = Field(
        default=False,
        description="Run steps as Kubernetes pods (`k8s_job_executor`), GPU steps on the GPU node group.",
    )
    gpu_node_label: str = Field(
        default="kb-platform/node-group", description="Node label that tells GPU nodes from the others."
    )
    gpu_node_value: str = Field(default="gpu", description="Value of that label on GPU nodes.")
    cpu_node_value: str = Field(
        default="general", description="Value of that label on nodes for all other work."
    )
    sensors_on: bool = Field(
        default=False,
        description="Dagster's sensors, schedules and automation run from the start. Otherwise a person switches "
        "them on in the UI.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe log line that is written to standard error."
    )

    @field_validator("github_api_url")
    @classmethod
    def _is_http(cls, value: str) -> str:
        if not value.startswith(("https://", "http://")):
            raise ValueError("must start with https:// (or http://)")
        return value.rstrip("/")

    @field_validator("database_url", "dagster_database_url")
    @classmethod
    def _is_postgresql(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("postgresql://", "postgres://")):
            raise ValueError("must start with postgresql://")
        return value

    @field_validator("kafka_config")
    @classmethod
    def _is_an_object(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                parsed = json.loads(value.get_secret_value())
            except ValueError:
                raise ValueError("is not JSON") from None
            if not isinstance(parsed, dict):
                raise ValueError("is not a JSON object")
        return value

    @property
    def home_folder(self) -> Path:
        """The folder of all local state; it need not exist yet."""
        if self.home is not None:
            return self.home.expanduser().resolve()
        here = Path.cwd()
        for folder in (here, *here.parents):
            if (folder / HOME_FOLDER).is_dir():
                return folder / HOME_FOLDER
        return Path.home() / HOME_FOLDER


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises SettingsError that names each wrong variable; values are left out, since they may be secrets.
    """
    try:
        return Settings()
    except ValidationError as error:
        wrong = "; ".join(
            f"KB_{str(item['loc'][0]).upper()}: {item['msg']}" if item["loc"] else item["msg"]
            for item in error.errors(include_input=False, include_url=False)
        )
        raise SettingsError(f"settings are wrong: {wrong}", hint="see docs/settings.md") from None
