"""Test suites: generated variants of a database, on which wrong queries give wrong results.

``profile`` reads a database, ``mutants`` writes wrong queries, ``populate`` draws databases, and
``distill`` keeps those on which the mutants differ from gold. ``suite`` builds and uses the suite.
"""
