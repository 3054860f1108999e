"""Answering in a terminal: one question at a time, and tables of all of them."""
