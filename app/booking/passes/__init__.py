"""Answers every slow question about a claim before the opening, and signs the answers into a pass."""
