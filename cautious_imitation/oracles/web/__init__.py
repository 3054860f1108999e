"""The questions of a log in a browser: pages for people, and the gate that keeps others out."""
