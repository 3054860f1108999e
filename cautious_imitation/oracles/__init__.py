"""Questions for the demonstrator, and whoever answers them: functions, people, models, and a log that loses nothing."""
