"""Language models: loading, reading, chats as tokens, and the small models that come with the library."""
