"""Measuring a policy, analysing what comes of it, and the tables and curves that show it."""
