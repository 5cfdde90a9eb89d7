"""A fake of Firebase Cloud Messaging and its OAuth endpoint, over real HTTP."""
