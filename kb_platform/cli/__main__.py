"""`python -m kb_platform.cli` is `kb`."""

from kb_platform.cli import main

main()
