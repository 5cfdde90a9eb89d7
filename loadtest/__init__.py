"""What plays the outside world: phones, and Firebase Cloud Messaging."""
