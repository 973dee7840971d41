"""Test suites: variants of a database, generated so that wrong queries show on them."""
