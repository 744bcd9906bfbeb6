"""Scores of answers and captions, each pinned to the official scorer's numbers; pure Python."""
