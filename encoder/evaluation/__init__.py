"""Measurements of an encoder, which `python -m encoder.evaluate` puts together.

`retrieval` ranks gold SQL among hard negatives and the other SQL of its database, `calibration`
compares scores with observed shares, `gaming` tries attacks, `samples` uses a real model's answers,
and `report` prints and plots the results.
"""
