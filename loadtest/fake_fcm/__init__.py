"""A fake of Firebase Cloud Messaging (FCM) and of its OAuth endpoint, over real HTTP."""
