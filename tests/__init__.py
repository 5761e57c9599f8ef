"""The tests. Fakes and other helpers have modules of their own here; fixtures are in `conftest`."""
