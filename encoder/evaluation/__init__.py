"""Measurements of the encoder: retrieval, hard negatives, a real model's answers, their report."""
