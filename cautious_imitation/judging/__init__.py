"""Which of two transcripts is better, or more complex: judges, pairs, and what their verdicts say."""
