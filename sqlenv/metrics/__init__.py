"""Metrics: execution match, Spider's hardness levels, and shares with bootstrap intervals."""
